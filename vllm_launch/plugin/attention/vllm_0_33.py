"""The backend for vLLM 0.33: the layout of the KV cache is one of an enumeration."""

from vllm.v1.kv_cache_layout import KVCacheLayout

from vllm_launch.plugin.attention import backend


class SinkBackend(backend.SinkBackend):
    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        return (KVCacheLayout.LBHNC,)
