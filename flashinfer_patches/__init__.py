"""Patch FlashInfer: a series for each supported release, the engine that applies it, and the cache of its kernels."""
