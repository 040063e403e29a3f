"""What an engine's weights and cache hold before it is measured. Functions on vLLM's worker."""

import torch

PATTERN_VALUES = 1 << 24
ROUTER_STD = 0.02


@torch.inference_mode()
def spread_routing(worker) -> int:
    """Make dummy weights route tokens over all experts, as a trained model does; returns the number of routers.

    vLLM's dummies are within ±1e-3, norms too: router biases then decide, every token takes the same experts, and a
    step reads a fraction of the weights that it would read. Norms become 1, biases of routers 0, embeddings and routers
    normal.
    """
    routers = 0
    for name, parameter in worker.get_model().named_parameters():
        if name.endswith("router.weight"):
            parameter.normal_(0, ROUTER_STD)
            routers += 1
        elif name.endswith("router.bias"):
            parameter.zero_()
        elif "embed" in name:
            parameter.normal_()
        elif "norm" in name:
            parameter.fill_(1)
    if not routers:
        raise ValueError("the model has no parameters named router.weight")
    return routers


@torch.inference_mode()
def fill_cache(worker) -> int:
    """Fill the KV cache with normal values, E4M3 if any layer stores 8 bits; returns its bytes.

    Layers share memory: BF16 layers then read pairs of E4M3 bytes of normal values, which are finite BF16 values.
    """
    caches = worker.model_runner.kv_caches
    dtype = torch.float8_e4m3fn if any(cache.dtype.itemsize == 1 for cache in caches) else torch.bfloat16
    storages = {cache.untyped_storage().data_ptr(): cache.untyped_storage() for cache in caches}
    pattern = torch.randn(PATTERN_VALUES, device=caches[0].device).to(dtype).view(torch.uint8)
    for storage in storages.values():
        values = torch.empty(0, dtype=torch.uint8, device=caches[0].device).set_(storage)
        for part in values.split(pattern.numel()):
            part.copy_(pattern[: part.numel()])
    return sum(storage.nbytes() for storage in storages.values())


def describe(worker) -> dict:
    """Model runner, attention backends and cache dtypes of a worker."""
    runner = worker.model_runner
    groups = [group for groups in runner.attn_groups for group in groups]
    return {
        "runner": type(runner).__module__,
        "backends": sorted({group.backend.get_name() for group in groups}),
        "cache_bytes": sorted({cache.dtype.itemsize for cache in runner.kv_caches}),
    }
