"""Measure: serving, accuracy, and the report made from result files alone."""
