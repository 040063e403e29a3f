"""Patch FlashInfer: the series for each supported release, the engine that applies them, and the kernels' cache."""
