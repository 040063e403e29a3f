"""Decode steps of vLLM's engine with a model's shape and dummy weights, stock and with our attention backend."""
