"""vLLM's attention backend CUSTOM: our cache writer, our decode kernel, FlashAttention for prefills; query in BF16.

What all supported vLLM versions share; `vllm_0_26` and `vllm_0_33` add the rest. A KV cache of a layer is one tensor
[pages, kv_heads, page, K and V], in that order in memory: K and V of a token are the two halves of a line.

vLLM calls, in this order: `SinkBackend` to select it, `SinkImpl` for each layer, its profiling run (`forward` without
metadata), `SinkBuilder` for each KV cache group, then in each step the builder, and for each layer
`do_kv_cache_update` and `forward`.
"""

import os
from typing import ClassVar

import torch
from vllm.v1.attention.backend import AttentionBackend

from vllm_launch.decoder.contract import HEAD_DIMS, KV_CACHE_DTYPES
from vllm_launch.plugin.attention import flash_attention, settings
from vllm_launch.plugin.attention.builder import SinkBuilder
from vllm_launch.plugin.attention.impl import SinkImpl


class SinkBackend(AttentionBackend):
    """What the backend can do."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[str]] = list(KV_CACHE_DTYPES)
    forward_includes_kv_cache_update = False

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[SinkImpl]:
        return SinkImpl

    @staticmethod
    def get_builder_cls() -> type[SinkBuilder]:
        return SinkBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec=None) -> list[int]:
        return [16, 32, 64, 128]

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return list(HEAD_DIMS)

    @classmethod
    def supports_sink(cls) -> bool:
        return True

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @classmethod
    def supports_device_cpu_query_lens_mismatch(cls) -> bool:
        return False  # prefills are planned from the host's lengths

    @classmethod
    def supports_combination(
        cls,
        head_size,
        dtype,
        kv_cache_dtype,
        block_size,
        use_mla,
        has_sink,
        use_sparse,
        use_mm_prefix,
        device_capability,
    ) -> str | None:
        """Return why the combination is refused; None if it is not."""
        if not has_sink:
            return "a model without attention sinks: fp8-sinks is tested with sinks only"
        return flash_attention.unsupported_reason(device_capability.major) or settings.uncertified_reason(
            device_capability.major, os.environ
        )
