"""Accuracy of a profile's answers against a reference: log-probabilities, greedy text and sinks."""
