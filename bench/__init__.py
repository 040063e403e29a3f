"""Benches of servers and kernels, by kind, and reports made from their results."""
