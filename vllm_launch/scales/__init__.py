"""Scales of an E4M3 KV cache: measured from a model's keys and values, kept in a file. Imports nothing heavy."""

HEADROOM = 2.0  # default factor on the largest magnitude of the text; E4M3 keeps its precision down to 448 / 2^14
