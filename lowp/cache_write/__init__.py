"""K and V of new tokens into a paged, quantised KV cache, rotated on the way where wanted."""

from lowp.cache_write.api import cache_write, rope_cache_write

__all__ = ["cache_write", "rope_cache_write"]
