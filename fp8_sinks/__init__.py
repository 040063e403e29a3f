"""The command `fp8-sinks`: joins each room's own click group, and the rooms' kernel caches in one."""
