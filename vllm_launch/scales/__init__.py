"""Scales of an E4M3 or int8 KV cache: measured from a model's keys and values, kept in a file. Imports no torch."""

# Default factor on the largest magnitude of the text. E4M3 keeps its precision down to 448 / 2^14; int8 loses a bit for
# each factor of 2.
HEADROOM = {"e4m3": 2.0, "int8": 1.1}
