"""An FP8 KV cache on a CPU for which vLLM has no FP8 kernels (neither AVX-512 nor AMX).

K and V are stored as FP8 codes, rounded to nearest: the cache takes half of BF16's bytes. In each step the pages that
a layer reads are widened into a scratch cache in the model's dtype, and vLLM's kernel for that dtype runs on it, with
its sinks, windows, GQA and causality. At scale 1 widening is exact: every FP8 value is a BF16 value. The scratch
holds the pages of one layer for the requests of this step, and is freed after the layer.

The layout of a page is [block, K and V, kv_heads, head_dim]; only this module reads it. Layers that keep the model's
dtype (--kv-cache-dtype-skip-layers) are left to vLLM.
"""

import copy
import functools
from dataclasses import dataclass

import torch
from vllm import _custom_ops as ops
from vllm.logger import init_logger
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)

from vllm_launch.plugin.cpu_cache import FP8_DTYPES, to_fp8

logger = init_logger("vllm.fp8_sinks")

PAIRS = 1 << 16


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


def _kernel_dtype(kv_cache_dtype: str) -> str:
    """The KV cache dtype to pass to vLLM's kernel: the model's own if the cache is FP8."""
    return "auto" if kv_cache_dtype in FP8_DTYPES else kv_cache_dtype


@dataclass
class Scratch:
    """The contents of a step's scratch cache.

    pages: the pages of the cache, [pages]. slots: the scratch slots of their tokens, [pages * block]; -1 for a token
    that no request has written: its bytes may be another layer's, including NaNs, and stay zeros in the scratch.
    """

    pages: torch.Tensor
    slots: torch.Tensor


def plan_scratch(
    block_table: torch.Tensor, seq_lens: torch.Tensor, query_lens: torch.Tensor, block: int, window: int
) -> tuple[Scratch, torch.Tensor]:
    """Plan the scratch of one step, with each page once; returns it and the block table into it.

    block_table: [requests, blocks] int32; window: tokens that a query attends to, itself included, -1 for all. Entries
    that no query of their request reads (past the end, or before the window) become vLLM's null page 0, left empty.
    """
    first = torch.zeros_like(seq_lens) if window < 0 else (seq_lens - query_lens - window + 1).clamp_(min=0) // block
    end = (seq_lens + block - 1) // block
    table = block_table[:, : int(end.max())]
    position = torch.arange(table.shape[1], dtype=seq_lens.dtype)
    is_read = (position >= first[:, None]) & (position < end[:, None])
    pages, inverse = torch.where(is_read, table, 0).unique(return_inverse=True)
    written = torch.where(is_read, (seq_lens[:, None] - position * block).clamp_(max=block), 0)
    tokens = torch.zeros(len(pages), dtype=written.dtype)
    tokens.scatter_reduce_(0, inverse.view(-1), written.view(-1), "amax")
    slots = torch.arange(len(pages) * block)
    slots[slots % block >= tokens.repeat_interleave(block)] = -1
    return Scratch(pages, slots), inverse.to(table.dtype)


@dataclass
class WideningMetadata(CPUAttentionMetadata):
    """vLLM's metadata for the scratch cache. scratch: None for layers that keep the model's dtype."""

    scratch: Scratch | None = None


class WideningBuilder(CPUAttentionMetadataBuilder):
    """Schedules vLLM's kernel for an unquantised cache."""

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        plain = copy.copy(vllm_config)
        plain.cache_config = copy.copy(vllm_config.cache_config)
        plain.cache_config.cache_dtype = _kernel_dtype(vllm_config.cache_config.cache_dtype)
        super().__init__(kv_cache_spec, layer_names, plain, device)

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        scratch = None
        if self.kv_cache_spec.dtype == torch.uint8:
            query_lens = metadata.query_start_loc.diff()
            scratch, metadata.block_table = plan_scratch(
                metadata.block_table, metadata.seq_lens, query_lens, self.block_size, self.window_size
            )
        return WideningMetadata(**vars(metadata), scratch=scratch)


class WideningCpuImpl(CPUAttentionBackendImpl):
    """vLLM's CPU attention on the widened FP8 cache, with our cache write."""

    def __init__(self, heads, head_size, scale, kv_heads, alibi_slopes, window, kv_cache_dtype, *args, **kwargs):
        kernel_dtype = _kernel_dtype(kv_cache_dtype)
        super().__init__(heads, head_size, scale, kv_heads, alibi_slopes, window, kernel_dtype, *args, **kwargs)
        self.fp8_dtype = FP8_DTYPES.get(kv_cache_dtype)
        if self.fp8_dtype is not None:
            logger.info_once("fp8-sinks: CPU KV cache writer rounds to %s", kv_cache_dtype)
            logger.info_once("fp8-sinks: CPU attention reads the FP8 cache: widened")

    def do_kv_cache_update(self, layer, key, value, kv_cache, slot_mapping):
        """key, value: [tokens, kv_heads, head_dim]; kv_cache: [blocks, kv_heads, block, 2 * head_dim], uint8."""
        if self.fp8_dtype is None:
            return super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)
        blocks, kv_heads, block, width = kv_cache.shape
        tokens = slot_mapping >= 0
        slots = slot_mapping[tokens]
        pages = kv_cache.view(blocks, block, 2, kv_heads, width // 2)
        for index, (x, scale) in enumerate(((key, layer._k_scale_float), (value, layer._v_scale_float))):
            codes = to_fp8(x[: len(tokens)][tokens], scale, self.fp8_dtype).view(torch.uint8)
            pages[slots // block, slots % block, index] = codes

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs):
        if self.fp8_dtype is not None and attn_metadata is not None:
            kv_cache = self._scratch_cache(layer, kv_cache, attn_metadata.scratch, query.dtype)
        return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)

    def _scratch_cache(self, layer, kv_cache, scratch: Scratch, dtype: torch.dtype) -> torch.Tensor:
        """Widen the pages to `dtype`, in the layout of vLLM's own cache writer."""
        blocks, kv_heads, block, width = kv_cache.shape
        codes = kv_cache.view(blocks, -1).index_select(0, scratch.pages).view(-1, 2, kv_heads, width // 2)
        key, value = (
            widen(codes[:, index], self.fp8_dtype, dtype, scale)
            for index, scale in enumerate((layer._k_scale_float, layer._v_scale_float))
        )
        wide = torch.zeros(len(scratch.pages), kv_heads, block, width, dtype=dtype)
        key_cache, value_cache = wide.view(-1, kv_heads, 2 * block, width // 2).chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(key, value, key_cache, value_cache, scratch.slots, layer.isa)
        return wide


class WideningCpuBackend(CPUAttentionBackend):
    """vLLM's CPU_ATTN backend with WideningCpuImpl."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        return WideningCpuImpl

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        return WideningBuilder
