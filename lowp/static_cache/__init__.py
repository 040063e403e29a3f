"""Static KV caches: a ring of frames for each layer, in a storage format, and attention over it."""

from lowp.static_cache.api import attend
from lowp.static_cache.cache import QuantizedStaticCache, StaticCache

__all__ = ["QuantizedStaticCache", "StaticCache", "attend"]
