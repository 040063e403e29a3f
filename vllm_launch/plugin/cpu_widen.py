"""A KV cache on a CPU that vLLM's kernels do not read: int8, and FP8 without AVX-512 and AMX.

K and V are stored as codes, see `cpu_storage`: the cache takes half of BF16's bytes. In each step the pages that a
layer reads are widened into a scratch cache in the model's dtype, and vLLM's kernel for that dtype runs on it, with
its sinks, windows, GQA and causality. At scale 1 widening FP8 is exact: every FP8 value is a BF16 value. The scratch
holds the pages of one layer for the requests of this step, and is freed after the layer.

Layers that keep the model's dtype (--kv-cache-dtype-skip-layers) are left to vLLM.
"""

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from vllm import _custom_ops as ops
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import AttentionSpec, KVQuantMode

from vllm_launch.decoder.contract import INT8
from vllm_launch.plugin.attention import formats
from vllm_launch.plugin.cpu_storage import FP8_DTYPES, storage_of

logger = init_logger("vllm.fp8_sinks")

CODES = (torch.uint8, torch.int8)  # dtypes of a layer whose pages hold codes


def _kernel_dtype(kv_cache_dtype: str) -> str:
    """The KV cache dtype to pass to vLLM's kernel: the model's own if the cache holds codes."""
    return "auto" if kv_cache_dtype in (*FP8_DTYPES, INT8) else kv_cache_dtype


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
        if self.kv_cache_spec.dtype in CODES:
            query_lens = metadata.query_start_loc.diff()
            scratch, metadata.block_table = plan_scratch(
                metadata.block_table, metadata.seq_lens, query_lens, self.block_size, self.window_size
            )
        return WideningMetadata(**vars(metadata), scratch=scratch)


class WideningCpuImpl(CPUAttentionBackendImpl):
    """vLLM's CPU attention on the widened cache, with our cache write."""

    def __init__(self, heads, head_size, scale, kv_heads, alibi_slopes, window, kv_cache_dtype, *args, **kwargs):
        kernel_dtype = _kernel_dtype(kv_cache_dtype)
        super().__init__(heads, head_size, scale, kv_heads, alibi_slopes, window, kernel_dtype, *args, **kwargs)
        self.storage = storage_of(kv_cache_dtype, get_current_vllm_config())
        if self.storage is not None:
            logger.info_once("fp8-sinks: CPU KV cache writer rounds to %s", self.storage.name)
            logger.info_once("fp8-sinks: CPU attention reads the %s cache: widened", self.storage.name)

    def do_kv_cache_update(self, layer, key, value, kv_cache, slot_mapping):
        """key, value, kv_cache: see `cpu_storage`."""
        if self.storage is None:
            return super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)
        self.storage.write(layer, key, value, kv_cache, slot_mapping)

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs):
        if self.storage is not None and attn_metadata is not None:
            kv_cache = self._scratch_cache(layer, kv_cache, attn_metadata.scratch, query.dtype)
        return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)

    def _scratch_cache(self, layer, kv_cache, scratch: Scratch, dtype: torch.dtype) -> torch.Tensor:
        """Widen the pages to `dtype`, in the layout of vLLM's own cache writer."""
        key, value = self.storage.read(layer, kv_cache.index_select(0, scratch.pages), dtype)
        _, kv_heads, block, _ = kv_cache.shape
        head_dim = key.shape[-1]
        wide = torch.zeros(len(scratch.pages), kv_heads, block, 2 * head_dim, dtype=dtype)
        key_cache, value_cache = wide.view(-1, kv_heads, 2 * block, head_dim).chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(key, value, key_cache, value_cache, scratch.slots, layer.isa)
        return wide


class WideningCpuBackend(CPUAttentionBackend):
    """vLLM's CPU_ATTN backend with WideningCpuImpl."""

    supported_kv_cache_dtypes: ClassVar[list[str]] = [*CPUAttentionBackend.supported_kv_cache_dtypes, INT8]

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Give a token and head of int8 the bytes of its two scales too."""
        if spec.kv_quant_mode != KVQuantMode.INT8_PER_TOKEN_HEAD:
            return spec
        return replace(spec, state_content_bytes=formats.line_size(spec.head_size, with_scales=True))

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        return WideningCpuImpl

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        return WideningBuilder
