"""Write K and V of new tokens into a paged, quantised KV cache, with RoPE on the way if requested."""

from lowp.cache_write.api import cache_write, rope_cache_write

__all__ = ["cache_write", "rope_cache_write"]
