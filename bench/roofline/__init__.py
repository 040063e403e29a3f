"""What a decode step must read, by bytes, and what follows for an FP8 KV cache."""
