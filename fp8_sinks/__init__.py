"""The command `fp8-sinks`: joins each room's own click group."""
