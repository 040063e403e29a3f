"""The paged KV cache: its layouts, seeded inputs and the float64 reference, for all kernels, tests and benches."""
