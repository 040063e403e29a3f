"""K or V of one layer as stored: codes and scales. Encode a frame, decode slots."""

from dataclasses import dataclass

import torch

from lowp.formats import FORMATS, Quantized, amax_scale, dequantize, quantize
from lowp.formats.table import BLOCK_SCALE_DTYPE, BLOCK_VALUES

MOMENTUM = 0.99
# Scales by name, and the granularity that a format must support for them.
SCALES = {"none": "none", "token_head": "token_head", "ema": "token_head", "block": "block"}
FIXED = "a tensor [heads]"
DTYPES = {name: chosen.dtype for name, chosen in FORMATS.items()} | {"fp32": torch.float32}
NAMES = {DTYPES[name]: name for name in ("fp32", "bf16", "fp16")}


@dataclass(frozen=True)
class Store:
    """Codes and scales of K or V: value ~ code * scale.

    codes: [batch, heads, slots, head_dim], the format's dtype; formats of 4 bits have head_dim / 2 bytes.
    scaling: none, token_head, ema, fixed or block. scale: fp32, [batch, heads, slots, 1] of token_head and ema,
    [1, heads, 1, 1] of fixed; bytes of E8M0 [batch, heads, slots, head_dim / 32] of block, since torch compiles no E8M0
    on a CPU; None for 1.
    running_amax: fp32 [batch, heads, 1, 1] of ema, or None. percentile: of a token's (token_head) or frame's (ema)
    magnitudes, which the scale maps onto the format's largest; 100 is the maximum.
    """

    kv_format: str
    codes: torch.Tensor
    scaling: str = "none"
    scale: torch.Tensor | None = None
    running_amax: torch.Tensor | None = None
    percentile: float = 100.0

    @property
    def scale_per_slot(self) -> bool:
        return self.scaling in ("token_head", "ema", "block")

    @property
    def head_dim(self) -> int:
        return self.codes.shape[-1] * values_per_code(self.kv_format)

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [x for x in (self.codes, self.scale, self.running_amax) if x is not None]


@dataclass(frozen=True)
class Storage:
    """How a layer is stored: formats of K and V, their scales (see `make_store`), and the percentile of V's scales."""

    k_format: str
    v_format: str
    k_scale: str | torch.Tensor = "none"
    v_scale: str | torch.Tensor = "none"
    v_percentile: float = 100.0


def make_store(shape, kv_format: str, scale: str | torch.Tensor, percentile: float, device) -> Store:
    """Allocate the store of `shape` [batch, heads, slots, head_dim].

    scale: none, token_head (largest magnitude of each token and head), ema (running largest magnitude of each sequence
    and head, momentum 0.99; a slot keeps the scale of its commit), block (a power of two for 32 neighbours along
    head_dim), or an fp32 tensor [heads]. 16 and 32 bits have none.
    """
    batch, heads, slots, head_dim = shape
    rows = (batch, heads, slots)
    codes = torch.zeros(*rows, head_dim // values_per_code(kv_format), dtype=DTYPES[kv_format], device=device)
    if not is_quantized(kv_format):
        return Store(kv_format, codes)
    if isinstance(scale, torch.Tensor):
        return Store(kv_format, codes, "fixed", scale.to(device).view(1, heads, 1, 1).clone())
    if scale == "none":
        return Store(kv_format, codes)
    if scale == "block":
        powers = torch.full((*rows, head_dim // BLOCK_VALUES), 127, dtype=torch.uint8, device=device)  # 2^0 in E8M0
        return Store(kv_format, codes, scale, powers)
    slot_scale = torch.ones(*rows, 1, device=device)
    running_amax = torch.zeros(batch, heads, 1, 1, device=device) if scale == "ema" else None
    return Store(kv_format, codes, scale, slot_scale, running_amax, percentile)


def is_quantized(kv_format: str) -> bool:
    return DTYPES[kv_format].itemsize == 1


def values_per_code(kv_format: str) -> int:
    return FORMATS[kv_format].values_per_code if kv_format in FORMATS else 1


def encode(store: Store, x: torch.Tensor) -> tuple[Quantized, torch.Tensor | None]:
    """Round a frame x [batch, heads, tokens, head_dim] to the store's format; return it with its scales per token.

    NaN is stored as 0, infinities as the format's largest. Updates the running amax of scales by EMA.
    """
    x = torch.where(x.isnan(), 0, x)
    if store.kv_format == "fp32":
        limit = torch.finfo(torch.float32).max
        infinite = x.isinf().sum()
        return Quantized(x.float().clamp(-limit, limit), infinite, torch.zeros_like(infinite)), None
    if not store.scale_per_slot:
        return quantize(x, store.kv_format, store.scale), None
    if store.scaling == "block":
        scale = amax_scale(x, store.kv_format, "block")
    else:
        scale = amax_scale(_frame_amax(store, x), store.kv_format, "token_head", "HND").expand(*x.shape[:3], 1)
    return quantize(x, store.kv_format, scale), scale


def decode(store: Store, slots: torch.Tensor | None = None) -> torch.Tensor:
    """Return the values of `slots` (int64 [n]), or of all slots, in fp32."""
    if slots is None:
        return dequantize(store.codes, _typed(store.scale), store.kv_format)
    scale = _select(store.scale, slots) if store.scale_per_slot else store.scale
    return dequantize(_select(store.codes, slots), _typed(scale), store.kv_format)


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    """View 8-bit codes and scales as uint8: indexed copies of float8 are not implemented on a CPU."""
    return x.view(torch.uint8) if x.element_size() == 1 else x


def _typed(scale: torch.Tensor | None) -> torch.Tensor | None:
    """View stored bytes of E8M0 as such."""
    return scale.view(BLOCK_SCALE_DTYPE) if scale is not None and scale.dtype == torch.uint8 else scale


def _select(x: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    return as_bytes(x).index_select(2, slots).view(x.dtype)


def _frame_amax(store: Store, x: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude that a token's scale covers, [batch, heads, tokens or 1, 1]."""
    if store.scaling == "token_head":
        return _magnitude(x, store.percentile, axes=1)
    amax, running = _magnitude(x, store.percentile, axes=2), store.running_amax
    return running.copy_(torch.where(running > 0, MOMENTUM * running + (1 - MOMENTUM) * amax, amax))


def _magnitude(x: torch.Tensor, percentile: float, axes: int) -> torch.Tensor:
    """Return the percentile of finite magnitudes over the last `axes` axes, kept with length 1."""
    magnitudes = torch.where(x.isfinite(), x, 0).float().abs().flatten(-axes)
    rank = max(1, round(magnitudes.shape[-1] * percentile / 100))
    amax = magnitudes.amax(-1) if rank == magnitudes.shape[-1] else magnitudes.kthvalue(rank, -1).values
    return amax.view(*x.shape[:-axes], *[1] * axes)
