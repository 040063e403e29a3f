"""What an engine's weights and cache hold before it is measured. Functions on vLLM's worker."""

import torch

from bench.engine.models import SCALE

PATTERN_VALUES = 1 << 24
ROUTER_STD = 0.02
RANK_SEEDS = 1 << 20  # over the number of parameters; CPU generators take 32 bits


@torch.inference_mode()
def spread_routing(worker) -> int:
    """Make dummy weights route tokens over all experts, as a trained model does; returns the number of routers.

    vLLM's dummies are within ±1e-3, norms too: router biases then decide, every token takes the same experts, and a
    step reads a fraction of the weights that it would read. Norms become 1, biases of routers 0, embeddings and routers
    normal. Ranks draw the same routers, since each holds them whole, and embeddings of their own.
    """
    routers = 0
    for index, (name, parameter) in enumerate(worker.get_model().named_parameters()):
        generator = torch.Generator(parameter.device)
        if name.endswith("router.weight"):
            parameter.normal_(0, ROUTER_STD, generator=generator.manual_seed(index))
            routers += 1
        elif name.endswith("router.bias"):
            parameter.zero_()
        elif "embed" in name:
            parameter.normal_(generator=generator.manual_seed(index + RANK_SEEDS * worker.rank))
        elif "norm" in name:
            parameter.fill_(1)
    if not routers:
        raise ValueError("the model has no parameters named router.weight")
    return routers


@torch.inference_mode()
def fill_cache(worker, kv_format: str) -> int:
    """Fill the KV cache with normal values in this format, by layers that share memory once; returns its bytes.

    BF16 layers that share their memory with 8-bit ones read pairs of their bytes, which are finite BF16 values.
    """
    caches = {(cache.data_ptr(), cache.dtype): cache for cache in worker.model_runner.kv_caches}.values()
    storages = {cache.untyped_storage().data_ptr(): cache.untyped_storage() for cache in caches}
    if kv_format == "int8":
        for cache in caches:
            if cache.dtype == torch.int8:
                fill_pages(cache)
    else:
        device = next(iter(caches)).device
        pattern = normal_values(PATTERN_VALUES, kv_format, device).view(torch.uint8)
        for storage in storages.values():
            values = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
            for part in values.split(pattern.numel()):
                part.copy_(pattern[: part.numel()])
    return sum(storage.nbytes() for storage in storages.values())


def normal_values(count: int | tuple[int, ...], kv_format: str, device: torch.device) -> torch.Tensor:
    """Draw normal values as a format stores them; in int8 with SCALE."""
    values = torch.randn(count, device=device)
    if kv_format.startswith("int8"):
        return (values / SCALE).round().clamp(-127, 127).to(torch.int8)
    return values.to(torch.bfloat16 if kv_format == "bf16" else torch.float8_e4m3fn)


def fill_pages(cache: torch.Tensor) -> None:
    """Fill the pages of an int8 cache of our backend: codes, and their scales."""
    from vllm_launch.plugin.attention import formats

    pages = max(1, PATTERN_VALUES // cache[0].numel())
    pattern = torch.empty(pages, *cache.shape[1:], dtype=torch.int8, device=cache.device)
    views = formats.views(pattern, "int8", cache.shape[-1] // 2 - formats.SCALE_BYTES)
    for codes, scales in ((views.k, views.k_scale), (views.v, views.v_scale)):
        codes.copy_(normal_values(codes.shape, "int8", cache.device))
        scales.fill_(SCALE)
    for part in cache.split(pages):
        part.copy_(pattern[: len(part)])


def describe(worker) -> dict:
    """Model runner, attention backends and cache dtypes of a worker."""
    runner = worker.model_runner
    groups = [group for groups in runner.attn_groups for group in groups]
    return {
        "runner": type(runner).__module__,
        "backends": sorted({group.backend.get_name() for group in groups}),
        "cache_bytes": sorted({cache.dtype.itemsize for cache in runner.kv_caches}),
    }
