"""What the pages of a CPU's KV cache hold, if vLLM's kernels do not read them: FP8 or int8 codes, and int8's scales.

A storage writes K and V of tokens, [tokens, kv_heads, head_dim], to their slots, and reads all tokens of pages. The
arguments `kv_cache` and `pages` are [pages, kv_heads, page, bytes of a token and head], as vLLM shapes a cache; only
this module reads the bytes. Values are rounded to nearest, ties to even, and clamped; `read` returns them in `dtype`.
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from vllm.config import VllmConfig
from vllm.logger import init_logger

from flashinfer_patches.errors import Problem
from lowp.formats import amax_scale, dequantize, quantize
from vllm_launch.decoder import contract
from vllm_launch.plugin.attention import scales, settings
from vllm_launch.plugin.attention.scales import Heads, HeadScales

logger = init_logger("vllm.fp8_sinks")

KeyValue = tuple[torch.Tensor, torch.Tensor]
PAIRS = 1 << 16
SCALE_BYTES = torch.float32.itemsize
FP8_DTYPES = {
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def storage_of(kv_cache_dtype: str, config: VllmConfig) -> "Storage | None":
    """Return the storage of a layer whose KV cache has this dtype; None for the model's own dtype.

    Raises ValueError for another KV_FORMAT than the plugin has, Problem for a scale file that does not fit.
    """
    requested = os.environ.get(contract.KV_FORMAT) or "e4m3"
    if requested not in contract.KV_FORMATS:
        raise ValueError(f"{contract.KV_FORMAT}={requested}: expected {' or '.join(contract.KV_FORMATS)}")
    if kv_cache_dtype == contract.INT8:
        return TokenInt8()
    if kv_cache_dtype not in FP8_DTYPES:
        return None
    return Fp8(FP8_DTYPES[kv_cache_dtype]) if requested == "e4m3" else StaticInt8(_static_scales(config))


def is_int8(kv_cache_dtype: str) -> bool:
    """Whether a server with this --kv-cache-dtype stores int8."""
    is_static = kv_cache_dtype in FP8_DTYPES and os.environ.get(contract.KV_FORMAT) == "int8"
    return is_static or kv_cache_dtype == contract.INT8


def _static_scales(config: VllmConfig) -> tuple[HeadScales, ...]:
    path = settings.config_path(config.model_config)
    return _read_scales(os.environ.get(contract.KV_SCALES), settings.heads_of(config), path)


@functools.cache
def _read_scales(path: str | None, heads: Heads, config: Path | None) -> tuple[HeadScales, ...]:
    """Read the scales of a file for this rank, once a process, and log its SHA-256."""
    if not path:
        message = f"{contract.KV_FORMAT}=int8 without {contract.KV_SCALES}: expected a scale file for int8"
        raise Problem("scales", message, "make one: fp8-sinks scales calibrate MODEL --kv-format int8")
    loaded = scales.load_scales(os.environ, heads, config, torch.device("cpu"))
    logger.info("fp8-sinks: CPU KV scales %s", loaded.sha256)
    return loaded.layers


def to_fp8(x: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """Round x / scale (any shape, BF16 or FP16) to the nearest value of the FP8 `dtype`, clamped to its range."""
    limit = torch.finfo(dtype).max
    scaled = x if scale == 1.0 else x.float() / scale
    return scaled.clamp(-limit, limit).to(dtype)


@functools.cache
def _pair_table(fp8: torch.dtype, dtype: torch.dtype, scale: float) -> torch.Tensor:
    """[PAIRS] integers, each two values in `dtype`; the index is the pair of FP8 codes as an int16, plus 2^15."""
    codes = torch.arange(-PAIRS // 2, PAIRS // 2, dtype=torch.int16).view(torch.uint8)
    values = codes.view(fp8).float().mul_(scale).to(dtype)
    return values.view(torch.int32 if dtype.itemsize == 2 else torch.int64)


def widen(codes: torch.Tensor, fp8: torch.dtype, dtype: torch.dtype, scale: float) -> torch.Tensor:
    """Convert FP8 `codes` (uint8, an even last dimension) to `dtype`, times `scale`; NaN stays NaN.

    Uses a table of pairs: on AVX2 five times as fast as torch's cast, twenty times as fast as a table of single codes.
    """
    index = codes.contiguous().view(torch.int16).view(-1).int().add_(PAIRS // 2)
    return _pair_table(fp8, dtype, scale).index_select(0, index).view(dtype).view(codes.shape)


def _token_rows(kv_cache: torch.Tensor) -> torch.Tensor:
    """View pages without scales as [pages, page, K and V, kv_heads, head_dim]."""
    pages, kv_heads, page, width = kv_cache.shape
    return kv_cache.view(pages, page, 2, kv_heads, width // 2)


@dataclass(frozen=True)
class Fp8:
    """FP8 codes, with the scales that vLLM read from the checkpoint."""

    dtype: torch.dtype

    @property
    def name(self) -> str:
        return {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}[self.dtype]

    def write(self, layer, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slots: torch.Tensor) -> None:
        rows, page = _token_rows(kv_cache), kv_cache.shape[2]
        for index, (x, scale) in enumerate(((key, layer._k_scale_float), (value, layer._v_scale_float))):
            rows[slots // page, slots % page, index] = to_fp8(x, scale, self.dtype).view(torch.uint8)

    def read(self, layer, pages: torch.Tensor, dtype: torch.dtype) -> KeyValue:
        codes = _token_rows(pages).flatten(0, 1)
        factors = layer._k_scale_float, layer._v_scale_float
        key, value = (widen(codes[:, index], self.dtype, dtype, scale) for index, scale in enumerate(factors))
        return key, value


@dataclass(frozen=True, eq=False)
class StaticInt8:
    """int8 codes in the pages of FP8. layers: each layer's scales, of K [kv_heads, head_dim] and of V [kv_heads]."""

    layers: tuple[HeadScales, ...]
    name = "int8-static"

    def write(self, layer, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slots: torch.Tensor) -> None:
        rows, page = _token_rows(kv_cache.view(torch.int8)), kv_cache.shape[2]
        for index, (x, scale) in enumerate(zip((key, value), self._scales(layer), strict=True)):
            rows[slots // page, slots % page, index] = quantize(x, "int8", scale).values

    def read(self, layer, pages: torch.Tensor, dtype: torch.dtype) -> KeyValue:
        codes = _token_rows(pages.view(torch.int8)).flatten(0, 1)
        key, value = (dequantize(codes[:, i], scale).to(dtype) for i, scale in enumerate(self._scales(layer)))
        return key, value

    def _scales(self, layer) -> KeyValue:
        k, v = self.layers[scales.layer_number(layer.layer_name)]
        return k, v[:, None]


@dataclass(frozen=True)
class TokenInt8:
    """int8 codes with a scale per token and head.

    A page holds the codes, [kv_heads, page, K and V, head_dim], and after them the scales in fp32, [K and V, kv_heads,
    page]: as many bytes as vLLM reserves for `int8_per_token_head`.
    """

    name = "int8"

    def write(self, layer, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slots: torch.Tensor) -> None:
        codes, factors = self._views(kv_cache)
        page, slot = slots // kv_cache.shape[2], slots % kv_cache.shape[2]
        for index, x in enumerate((key, value)):
            scale = amax_scale(x, "int8", "token_head")
            codes[page, :, slot, index] = quantize(x, "int8", scale).values
            factors[page, index, :, slot] = scale.squeeze(-1)

    def read(self, layer, pages: torch.Tensor, dtype: torch.dtype) -> KeyValue:
        codes, factors = self._views(pages)
        key, value = (
            dequantize(codes[:, :, :, index], factors[:, index, ..., None]).to(dtype).transpose(1, 2).flatten(0, 1)
            for index in range(2)
        )
        return key, value

    @staticmethod
    def _views(kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """View the codes and the scales of pages, each in the order above."""
        pages, kv_heads, page, width = kv_cache.shape
        head_dim = width // 2 - SCALE_BYTES
        content, end = kv_cache.view(pages, -1), kv_heads * page * 2 * head_dim
        codes = content[:, :end].view(pages, kv_heads, page, 2, head_dim)
        return codes, content[:, end:].view(torch.float32).view(pages, 2, kv_heads, page)


Storage = Fp8 | StaticInt8 | TokenInt8
