"""Kernel benches: one script a concept, each self-contained, writing JSON."""
