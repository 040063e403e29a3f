"""Formats of the KV cache: which one a server has, and how K, V and their scales lie in a page.

A page of a layer holds its lines, [kv_heads, page, K and V]; in format int8 its scales follow (`lowp.paged.layouts`).
vLLM budgets as many bytes for it: 2 * (head_dim + 4) a token and head.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from flashinfer_patches.errors import Problem
from lowp.paged.layouts import split_scales
from vllm_launch.decoder.contract import INT8, KV_FORMAT, KV_FORMATS, KV_SCALES

FP8 = ("fp8", "fp8_e4m3")
STORAGE = {
    "bf16": torch.bfloat16,
    "e4m3": torch.float8_e4m3fn,
    "int8": torch.int8,  # scales per token and head, computed by the cache writer
    "int8-static": torch.int8,  # of a scale file: K per head and channel, V per head
}
STATIC = ("e4m3", "int8-static")  # with scales that the layer has
SCALE_BYTES = torch.float32.itemsize


class Views(NamedTuple):
    """K and V of a cache, [pages, kv_heads, page, head_dim], and the scales in its pages, without head_dim, if any."""

    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None


def layer_format(kv_cache_dtype: str, environment: Mapping[str, str]) -> str:
    """Return the format of a layer whose cache dtype is `kv_cache_dtype`: "auto" is the model's, BF16."""
    if kv_cache_dtype == INT8:
        return "int8"
    if kv_cache_dtype not in FP8:
        return "bf16"
    return "int8-static" if environment.get(KV_FORMAT) == "int8" else "e4m3"


def check(kv_cache_dtype: str, decoder: str, environment: Mapping[str, str]) -> None:
    """Raise Problem if the decoder or the environment does not fit a server started with --kv-cache-dtype."""
    requested, has_file = environment.get(KV_FORMAT) or "e4m3", bool(environment.get(KV_SCALES))
    if requested not in KV_FORMATS:
        message = f"{KV_FORMAT}={requested}: expected {' or '.join(KV_FORMATS)}"
        raise Problem("profile", message, "correct it, or unset it for e4m3")
    server_format = layer_format(kv_cache_dtype, environment)
    if requested == "int8" and server_format != "int8-static":
        message = (
            f"{KV_FORMAT}=int8 with --kv-cache-dtype {kv_cache_dtype}: expected fp8, whose bytes it stores as int8"
        )
        raise Problem("profile", message, f"serve with --kv-cache-dtype fp8, or unset {KV_FORMAT}")
    if server_format.startswith("int8") and decoder != "lowp":
        message = f"KV format {server_format} with decoder {decoder}: expected lowp, the only one that reads int8"
        raise Problem("profile", message, "take decoder lowp, or KV format e4m3")
    if server_format == "int8-static" and not has_file:
        message = f"{KV_FORMAT}=int8 without {KV_SCALES}: expected a scale file for int8"
        remedy = f"make one, fp8-sinks scales calibrate --kv-format int8, or serve with --kv-cache-dtype {INT8}"
        raise Problem("scales", message, remedy)
    if has_file and server_format not in STATIC:
        why = "the cache writer computes the scales" if server_format == "int8" else "a BF16 cache has no scales"
        message = f"{KV_SCALES} is set with --kv-cache-dtype {kv_cache_dtype}: {why}; expected fp8"
        raise Problem("scales", message, f"serve with --kv-cache-dtype fp8, or unset {KV_SCALES}")


def line_size(head_dim: int, *, with_scales: bool = False) -> int:
    """Return the values that a token and KV head take in a page. with_scales: of format int8."""
    return 2 * (head_dim + SCALE_BYTES) if with_scales else 2 * head_dim


def views(cache: torch.Tensor, kv_format: str, head_dim: int) -> Views:
    """View a layer's cache, [pages, kv_heads, page, line_size], without a copy. Pages may be strided."""
    cache = cache.view(STORAGE[kv_format])
    if kv_format != "int8":
        return Views(*cache.split(head_dim, dim=-1))
    pages, kv_heads, page, _ = cache.shape
    return Views(*split_scales(cache.view(pages, -1), page, kv_heads, head_dim))
