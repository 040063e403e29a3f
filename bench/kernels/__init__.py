"""Decode kernels side by side: the same inputs, one run, each time with its error and the memory's read ceiling."""
