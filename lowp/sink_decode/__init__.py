"""Decode attention with sinks over a paged, quantised KV cache."""

from lowp.sink_decode.api import make_workspace, sink_decode
from lowp.sink_decode.reference import reference

__all__ = ["make_workspace", "reference", "sink_decode"]
