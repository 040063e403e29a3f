"""The backend for vLLM 0.33: the layout of the KV cache is one of an enumeration, a line has a size in bytes."""

from dataclasses import replace

from vllm.v1.kv_cache_interface import AttentionSpec, KVQuantMode
from vllm.v1.kv_cache_layout import KVCacheLayout

from vllm_launch.plugin.attention import backend, formats


class SinkBackend(backend.SinkBackend):
    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        return (KVCacheLayout.LBHNC,)

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Make room for the scales in pages of format int8. vLLM may call it with its own result."""
        if spec.kv_quant_mode != KVQuantMode.INT8_PER_TOKEN_HEAD:
            return spec
        return replace(spec, state_content_bytes=formats.line_size(spec.head_size, with_scales=True))
