"""Arguments that a cache refuses: got and expected, one line each."""

from collections.abc import Sequence

import torch

from lowp.formats import FORMATS
from lowp.formats.table import BLOCK_VALUES
from lowp.static_cache.store import FIXED, NAMES, SCALES, is_quantized, values_per_code


def check_windows(layers: int, frame_tokens: int, windows: Sequence[int]) -> None:
    if len(windows) != layers:
        raise ValueError(f"windows has {len(windows)} entries; expected one for each of {layers} layers")
    if frame_tokens < 1:
        raise ValueError(f"frame_tokens is {frame_tokens}; expected 1 or more")
    for layer, window in enumerate(windows):
        if window < frame_tokens:
            raise ValueError(f"layer {layer}: a frame of {frame_tokens} tokens is longer than the ring of {window}")
        if window % frame_tokens:
            raise ValueError(f"layer {layer}: window {window} is not a multiple of the frame's {frame_tokens} tokens")


def check_dtype(dtype: torch.dtype) -> None:
    if dtype not in NAMES:
        raise TypeError(f"dtype is {dtype}; expected torch.bfloat16, torch.float16 or torch.float32")


def check_storage(side: str, kv_format: str, scale: str | torch.Tensor, percentile: float, frame_shape: tuple) -> None:
    """Check the format and the scales of K or V (`side` names it) of one layer."""
    _, heads, _, head_dim = frame_shape
    if kv_format not in FORMATS and kv_format != "fp32":
        raise ValueError(f"{side}_format {kv_format!r} is unknown; expected one of {', '.join(FORMATS)}, fp32")
    if head_dim % values_per_code(kv_format):
        raise ValueError(f"head_dim is {head_dim}; expected an even number, as {kv_format} has two values in a byte")
    if isinstance(scale, torch.Tensor):
        if scale.dtype != torch.float32 or scale.shape != (heads,):
            raise ValueError(f"{side}_scale is {scale.dtype} {tuple(scale.shape)}; expected torch.float32 ({heads},)")
        if not (scale.isfinite() & (scale > 0)).all():
            raise ValueError(f"{side}_scale has values that are not positive and finite")
    elif scale not in SCALES:
        raise ValueError(f"{side}_scale {scale!r} is unknown; expected {', '.join(SCALES)} or {FIXED}")
    elif scale == "block" and head_dim % BLOCK_VALUES:
        raise ValueError(f"head_dim is {head_dim}; expected a multiple of a block's {BLOCK_VALUES} values")
    if is_quantized(kv_format):
        supported = FORMATS[kv_format].granularities
        names = [name for name, granularity in {**SCALES, FIXED: "token_head"}.items() if granularity in supported]
        chosen = FIXED if isinstance(scale, torch.Tensor) else scale
        if chosen not in names:
            raise NotImplementedError(f"{kv_format} has no {side}_scale {chosen}; expected {', '.join(names)}")
    if not 0 < percentile <= 100:
        raise ValueError(f"{side}_percentile is {percentile}; expected more than 0, at most 100")
    if percentile < 100 and (isinstance(scale, torch.Tensor) or scale not in ("token_head", "ema")):
        raise ValueError(f"{side}_percentile {percentile} acts on scales token_head and ema; {side}_scale is another")


def check_late_layers(layers: int, kv_late_layers: int) -> None:
    if not 0 <= kv_late_layers <= layers:
        raise ValueError(f"kv_late_layers is {kv_late_layers}; expected 0 (all) to {layers}, the number of layers")


def check_tail_only(frame_tokens: int, tail_only: int) -> None:
    if tail_only < frame_tokens or tail_only % frame_tokens:
        raise ValueError(f"tail_only is {tail_only}; expected a positive multiple of the frame's {frame_tokens} tokens")


def check_layer(cache, layer: int) -> None:
    if not 0 <= layer < len(cache.rings):
        raise ValueError(f"layer is {layer}; expected 0 to {len(cache.rings) - 1}")


def check_frames(cache, **frames: torch.Tensor) -> None:
    """Check that each tensor is a frame of the cache: shape, dtype, device, contiguous."""
    for name, x in frames.items():
        if x.shape != cache.frame_shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {cache.frame_shape}")
        if x.dtype != cache.dtype:
            raise TypeError(f"{name} has dtype {x.dtype}; expected {cache.dtype}")
        if x.device.type != cache.device.type:
            raise ValueError(f"{name} is on {x.device}; expected {cache.device}")
        if not x.is_contiguous():
            raise ValueError(f"{name} has strides {x.stride()}; expected contiguous [batch, heads, tokens, head_dim]")
