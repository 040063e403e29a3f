"""The backend for vLLM 0.26: the layout of the KV cache is given as a shape and an order of its axes."""

from vllm_launch.decoder.contract import INT8
from vllm_launch.plugin.attention import backend, formats


class SinkBackend(backend.SinkBackend):
    @staticmethod
    def get_kv_cache_shape(
        num_blocks: int, block_size: int, num_kv_heads: int, head_size: int, cache_dtype_str: str = "auto"
    ) -> tuple[int, ...]:
        line = formats.line_size(head_size, with_scales=cache_dtype_str == INT8)
        return (num_blocks, num_kv_heads, block_size, line)

    @staticmethod
    def get_kv_cache_stride_order(include_num_layers_dimension: bool = False) -> tuple[int, ...]:
        """Return the order in memory; with a dimension of layers in front, pages stay outermost and whole."""
        return (1, 0, 2, 3, 4) if include_num_layers_dimension else (0, 1, 2, 3)

    @classmethod
    def get_required_kv_cache_layout(cls) -> str:
        return "HND"
