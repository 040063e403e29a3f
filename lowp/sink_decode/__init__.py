"""Decode attention with sinks over a paged, quantised KV cache."""

from lowp.sink_decode.api import make_workspace, prebuild, sink_decode

__all__ = ["make_workspace", "prebuild", "sink_decode"]
