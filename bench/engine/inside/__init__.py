"""Run in an engine's process."""
