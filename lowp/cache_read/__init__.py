"""Read tokens of a paged, quantised KV cache into contiguous rows of BF16 or FP16."""

from lowp.cache_read.api import cache_read

__all__ = ["cache_read"]
