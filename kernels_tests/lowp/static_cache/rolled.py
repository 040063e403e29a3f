"""The earlier design as the truth of the tests: concatenated and truncated caches, in fp64, of what a format keeps."""

import torch

from kernels_tests.lowp.static_cache.frames import FIXED_SCALE, LAYERS, WINDOWS, frame
from lowp.formats import amax_scale, dequantize, quantize
from lowp.static_cache import attend


class RolledCache:
    """The newest `window` tokens of one layer, oldest first."""

    def __init__(self, window: int):
        self.window = window
        self.k = self.v = None

    def concatenate(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (k, v) if self.k is None else (torch.cat([self.k, k], 2), torch.cat([self.v, v], 2))

    def update(self, k: torch.Tensor, v: torch.Tensor) -> None:
        self.k, self.v = (x[:, :, -self.window :] for x in self.concatenate(k, v))


def exact_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return softmax(q k^T / sqrt(head_dim)) v in fp64."""
    scores = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.softmax(-1) @ v.double()


def rounded(x: torch.Tensor, kv_format: str | None, scale: str | torch.Tensor) -> torch.Tensor:
    """Return a frame as a cache keeps it, with scales none, token_head, block or fixed."""
    if kv_format is None:
        return x
    scale = scale.view(-1, 1, 1) if isinstance(scale, torch.Tensor) else amax_scale(x, kv_format, scale, "HND")
    return dequantize(quantize(x, kv_format, scale).values, scale, kv_format)


def worst_error(cache, backend: str, frames: int, k_storage=(None, "none"), v_storage=(None, "none")) -> float:
    """Return the worst relative error of `attend` against a rolled cache, over frames of two sampling steps each.

    The first step sees another frame than the second, which commits.
    """
    truth = [RolledCache(window) for window in WINDOWS]
    worst = 0.0
    for number in range(frames):
        for seed, commits in ((2 * number, False), (2 * number + 1, True)):
            (cache.enable_cache_updates if commits else cache.disable_cache_updates)()
            q, k, v = frame(seed, cache.dtype)
            for layer in LAYERS:
                out = attend(q, cache, layer, k, v, backend)
                exact = exact_attention(q, *truth[layer].concatenate(k.double(), v.double()))
                worst = max(worst, relative_error(out, exact))
                cache.update(k, v, layer)
                if commits:
                    truth[layer].update(rounded(k, *k_storage).double(), rounded(v, *v_storage).double())
    return worst


def relative_error(out: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the worst relative L2 error of a sequence and head; infinity for NaN."""
    error, norm = (x.flatten(2).norm(dim=-1) for x in (out.double() - exact, exact))
    return (error / norm).nan_to_num(nan=torch.inf).max().item()


# Formats and scales of K and V, and the backends that read them.
STORAGES = {
    "plain": ((None, "none"), (None, "none"), ("reference", "flex")),
    "V e4m3": ((None, "none"), ("e4m3", "none"), ("reference", "flex")),
    "K e5m2, V e4m3": (("e5m2", "none"), ("e4m3", "none"), ("reference", "flex")),
    "K int8 token, V int8 head": (("int8", "token_head"), ("int8", FIXED_SCALE), ("reference", "flex")),
    "K e4m3 head, V e5m2 head": (("e4m3", FIXED_SCALE), ("e5m2", FIXED_SCALE), ("reference", "flex")),
    "K int8 token, V int8 token": (("int8", "token_head"), ("int8", "token_head"), ("reference",)),
    "K bf16, V e4m3 token": (("bf16", "none"), ("e4m3", "token_head"), ("reference",)),
    "K mxfp8, V mxfp4": (("mxfp8", "block"), ("mxfp4", "block"), ("reference",)),
    "K e5m2 block, V int4 token": (("e5m2", "block"), ("int4", "token_head"), ("reference",)),
    "K int4 block, V int4 head": (("int4", "block"), ("int4", FIXED_SCALE * 10), ("reference",)),
}
CASES = [(name, backend) for name, (_, _, backends) in STORAGES.items() for backend in backends]
