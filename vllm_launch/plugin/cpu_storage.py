"""What the pages of a CPU's KV cache hold, if vLLM's kernels do not read them: FP8 or int8 codes, and int8's scales.

A storage writes K and V of tokens, [tokens or more, kv_heads, head_dim], to their slots, -1 for none, and reads all
tokens of pages in `dtype`. `kv_cache` and `pages` are [pages, kv_heads, page, bytes of a token and head], as vLLM
shapes a cache. int8 is stored as `lowp.cache_write` specifies it, and lies in pages as on a GPU (`attention.formats`).
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from vllm.config import VllmConfig
from vllm.logger import init_logger

from lowp.cache_write import cache_write
from lowp.formats import dequantize
from vllm_launch.decoder import contract
from vllm_launch.plugin.attention import formats, scales, settings
from vllm_launch.plugin.attention.scales import Heads, HeadScales

logger = init_logger("vllm.fp8_sinks")

KeyValue = tuple[torch.Tensor, torch.Tensor]
PAIRS = 1 << 16
FP8_DTYPES = {
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def storage_of(kv_cache_dtype: str, config: VllmConfig) -> "Storage | None":
    """Return the storage of a layer whose KV cache has this dtype; None for the model's own dtype.

    Raises Problem for an environment or a scale file that does not fit the server, NotImplementedError for a dtype of
    the model, or a page size, that int8 does not have.
    """
    if is_int8(config.cache_config.cache_dtype):
        formats.check(config.cache_config.cache_dtype, "lowp", os.environ)
        dtype, page = config.model_config.dtype, config.cache_config.block_size
        if dtype not in (torch.bfloat16, torch.float16) or page.bit_count() != 1:
            message = f"dtype {dtype}, pages of {page} tokens; expected bfloat16 or float16, a power of two"
            raise NotImplementedError(f"int8 KV cache on a CPU: {message}")
    if kv_cache_dtype == contract.INT8:
        return TokenInt8()
    if kv_cache_dtype not in FP8_DTYPES:
        return None
    return StaticInt8(_static_scales(config)) if is_int8(kv_cache_dtype) else Fp8(FP8_DTYPES[kv_cache_dtype])


def is_int8(kv_cache_dtype: str) -> bool:
    """Whether a KV cache of this dtype stores int8 in this process. Raises ValueError for an unknown KV_FORMAT."""
    stored = os.environ.get(contract.KV_FORMAT) or "e4m3"
    if stored not in contract.KV_FORMATS:
        raise ValueError(f"{contract.KV_FORMAT}={stored}: expected {' or '.join(contract.KV_FORMATS)}")
    return kv_cache_dtype == contract.INT8 or (kv_cache_dtype in FP8_DTYPES and stored == "int8")


def _static_scales(config: VllmConfig) -> tuple[HeadScales, ...]:
    path = settings.config_path(config.model_config)
    return _read_scales(os.environ[contract.KV_SCALES], settings.heads_of(config), path)


@functools.cache
def _read_scales(path: str, heads: Heads, config: Path | None) -> tuple[HeadScales, ...]:
    """Read the scales of a file for this rank, once a process, and log its SHA-256."""
    environment = {contract.KV_SCALES: path, contract.KV_FORMAT: "int8"}
    loaded = scales.load_scales(environment, heads, config, torch.device("cpu"))
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


@dataclass(frozen=True)
class Fp8:
    """FP8 codes, with the scales that vLLM read from the checkpoint. A page is [page, K and V, kv_heads, head_dim]."""

    dtype: torch.dtype

    @property
    def name(self) -> str:
        return {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}[self.dtype]

    def write(self, layer, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slots: torch.Tensor) -> None:
        rows, page = self._rows(kv_cache), kv_cache.shape[2]
        tokens = slots >= 0
        slots = slots[tokens]
        for index, (x, scale) in enumerate(((key, layer._k_scale_float), (value, layer._v_scale_float))):
            codes = to_fp8(x[: len(tokens)][tokens], scale, self.dtype).view(torch.uint8)
            rows[slots // page, slots % page, index] = codes

    def read(self, layer, pages: torch.Tensor, dtype: torch.dtype) -> KeyValue:
        codes = self._rows(pages).flatten(0, 1)
        factors = layer._k_scale_float, layer._v_scale_float
        key, value = (widen(codes[:, index], self.dtype, dtype, scale) for index, scale in enumerate(factors))
        return key, value

    @staticmethod
    def _rows(kv_cache: torch.Tensor) -> torch.Tensor:
        pages, kv_heads, page, width = kv_cache.shape
        return kv_cache.view(pages, page, 2, kv_heads, width // 2)


@dataclass(frozen=True)
class TokenInt8:
    """int8 codes with a scale per token and head, in the pages."""

    name = "int8"

    def write(self, layer, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slots: torch.Tensor) -> None:
        k, v, k_scale, v_scale = formats.views(kv_cache, self.name, key.shape[-1])
        cache_write(key, value, k, v, slots, k_scale=k_scale, v_scale=v_scale, layout="HND")

    def read(self, layer, pages: torch.Tensor, dtype: torch.dtype) -> KeyValue:
        k, v, k_scale, v_scale = formats.views(pages, self.name, pages.shape[-1] // 2 - formats.SCALE_BYTES)
        return _tokens(k, k_scale[..., None], dtype), _tokens(v, v_scale[..., None], dtype)


@dataclass(frozen=True, eq=False)
class StaticInt8:
    """int8 codes with the scales of a file. layers: those of each layer, K [kv_heads, head_dim] and V [kv_heads]."""

    layers: tuple[HeadScales, ...]
    name = "int8-static"

    def write(self, layer, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slots: torch.Tensor) -> None:
        k, v, *_ = formats.views(kv_cache, self.name, key.shape[-1])
        k_scale, v_scale = self._scales(layer)
        cache_write(key, value, k, v, slots, k_scale=k_scale, v_scale=v_scale, layout="HND")

    def read(self, layer, pages: torch.Tensor, dtype: torch.dtype) -> KeyValue:
        k, v, *_ = formats.views(pages, self.name, pages.shape[-1] // 2)
        k_scale, v_scale = self._scales(layer)
        return _tokens(k, k_scale[:, None], dtype), _tokens(v, v_scale[:, None, None], dtype)

    def _scales(self, layer) -> HeadScales:
        return self.layers[scales.layer_number(layer.layer_name)]


Storage = Fp8 | TokenInt8 | StaticInt8


def _tokens(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the values of int8 `codes`, [pages, kv_heads, page, head_dim], as [tokens, kv_heads, head_dim].

    scale: fp32, broadcast to the codes.
    """
    return dequantize(codes, scale).to(dtype).transpose(1, 2).flatten(0, 1)
