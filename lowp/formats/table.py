"""The storage formats: the range and precision of each, and the scale granularities that it supports."""

from dataclasses import dataclass

import torch

# The values that share a scale, in a tensor of tokens x heads x head_dim.
GRANULARITIES = ("none", "tensor", "head", "token_head", "channel")


@dataclass(frozen=True)
class Format:
    """A storage format (`kv_format`).

    largest: the largest finite magnitude; smallest: the least magnitude over 0 (subnormal).
    step: the spacing of values relative to their magnitude (2^-mantissa bits), or 0 where the spacing is absolute.
    has_nan: whether the format can hold NaN. granularities: the scales that it supports.
    Sources: OCP 8-bit Floating Point 1.0 for e4m3 (torch's e4m3fn: no infinity) and e5m2; int8 leaves out -128, so that
    it is symmetric.
    """

    name: str
    dtype: torch.dtype
    largest: float
    smallest: float
    step: float
    has_nan: bool
    granularities: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize


FLOAT8_SCALES = ("none", "tensor", "head", "token_head")
FORMATS = {
    kv_format.name: kv_format
    for kv_format in (
        Format("bf16", torch.bfloat16, torch.finfo(torch.bfloat16).max, 2.0**-133, 2.0**-7, True, ("none",)),
        Format("fp16", torch.float16, 65504.0, 2.0**-24, 2.0**-10, True, ("none",)),
        Format("e4m3", torch.float8_e4m3fn, 448.0, 2.0**-9, 2.0**-3, True, FLOAT8_SCALES),
        Format("e5m2", torch.float8_e5m2, 57344.0, 2.0**-16, 2.0**-2, True, FLOAT8_SCALES),
        Format("int8", torch.int8, 127.0, 1.0, 0.0, False, ("tensor", "head", "token_head", "channel")),
    )
}

HEAD_AXIS = {"NHD": -2, "HND": -3}


def find(name: str) -> Format:
    """Return the format called `name`. Raises ValueError with the known names."""
    if name not in FORMATS:
        raise ValueError(f"storage format {name!r} is unknown; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def scale_axes(granularity: str, layout: str, rank: int) -> tuple[int, ...]:
    """Return the axes that share a scale, of a tensor of `rank` axes whose last three are in the order of `layout`.

    Pages or batch in front of the last three share scales of granularity tensor, head and channel.
    Raises ValueError for an unknown granularity or layout, or fewer than three axes.
    """
    if layout not in HEAD_AXIS:
        raise ValueError(f"layout {layout!r} is unknown; expected one of {', '.join(HEAD_AXIS)}")
    if rank < 3:
        raise ValueError(f"a tensor of {rank} axes has no tokens, heads and head_dim; expected 3 axes or more")
    head, channel = rank + HEAD_AXIS[layout], rank - 1
    own_axes = {"tensor": (), "head": (head,), "channel": (head, channel)}
    if granularity == "token_head":
        return (channel,)
    if granularity not in own_axes:
        raise ValueError(f"granularity {granularity!r} has no scale; expected one of {', '.join(GRANULARITIES[1:])}")
    return tuple(axis for axis in range(rank) if axis not in own_axes[granularity])
