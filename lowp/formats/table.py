"""The storage formats: the range and precision of each, and the scale granularities that it supports."""

from dataclasses import dataclass

import torch

# The values that share a scale, in a tensor of tokens x heads x head_dim; block: 32 neighbours along head_dim.
GRANULARITIES = ("none", "tensor", "head", "token_head", "channel", "block")
BLOCK_VALUES = 32
# Share of the validation's outputs that may be outside allclose(rtol=5e-3, atol=5e-3). Stated before the run, after a
# trial on other values: there 0.2% with E4M3 storage and 1.4% with every operand in E4M3, P scaled.
OUTSIDE_BOUND = 0.01
BLOCK_SCALE_DTYPE = torch.float8_e8m0fnu  # a power of two in one byte


@dataclass(frozen=True)
class Format:
    """A storage format (`kv_format`).

    dtype: of the codes in memory; bits: of a value. Formats of 4 bits hold two neighbours along head_dim in a byte, the
    first in the low bits. largest: the largest finite magnitude; smallest: the least magnitude over 0 (subnormal).
    step: the spacing of values relative to their magnitude (2^-mantissa bits), or 0 where the spacing is absolute.
    has_nan: whether the format can hold NaN. granularities: the scales that it supports.
    Sources: OCP 8-bit Floating Point 1.0 for e4m3 (torch's e4m3fn: no infinity) and e5m2; OCP Microscaling (MX) 1.0 for
    mxfp8 (E4M3 elements; with E5M2 elements it is e5m2 with scales of granularity block) and mxfp4 (E2M1 elements).
    int8 leaves out -128 and int4 -8, so that they are symmetric.
    rel_l2_bound: of the attention output of a head with K and V in the format, against exact K and V. ships: whether
    storage in the format met it in `bench kernels --validate`, with at most OUTSIDE_BOUND of the outputs outside
    allclose.
    """

    name: str
    dtype: torch.dtype
    largest: float
    smallest: float
    step: float
    has_nan: bool
    granularities: tuple[str, ...]
    bits: int
    rel_l2_bound: float
    ships: bool

    @property
    def bytes(self) -> int:
        """Bytes of a code in memory: of one value, or of two of 4 bits."""
        return self.dtype.itemsize

    @property
    def values_per_code(self) -> int:
        return 8 * self.dtype.itemsize // self.bits


BF16_LARGEST = torch.finfo(torch.bfloat16).max
FLOAT8_SCALES = ("none", "tensor", "head", "token_head")
FORMATS = {
    kv_format.name: kv_format
    for kv_format in (
        Format("bf16", torch.bfloat16, BF16_LARGEST, 2.0**-133, 2.0**-7, True, ("none",), 16, 0.005, True),
        Format("fp16", torch.float16, 65504.0, 2.0**-24, 2.0**-10, True, ("none",), 16, 0.005, True),
        Format("e4m3", torch.float8_e4m3fn, 448.0, 2.0**-9, 2.0**-3, True, FLOAT8_SCALES, 8, 0.10, True),
        Format("e5m2", torch.float8_e5m2, 57344.0, 2.0**-16, 2.0**-2, True, (*FLOAT8_SCALES, "block"), 8, 0.10, False),
        Format("int8", torch.int8, 127.0, 1.0, 0.0, False, ("tensor", "head", "token_head", "channel"), 8, 0.02, True),
        Format("int4", torch.uint8, 7.0, 1.0, 0.0, False, ("token_head", "block"), 4, 0.10, False),
        Format("mxfp8", torch.float8_e4m3fn, 448.0, 2.0**-9, 2.0**-3, True, ("block",), 8, 0.10, True),
        Format("mxfp4", torch.uint8, 6.0, 0.5, 0.5, False, ("block",), 4, 0.10, False),
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
    Raises ValueError for a granularity that has no axes of its own, an unknown layout, or fewer than three axes.
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
        raise ValueError(f"granularity {granularity!r} has no axes; expected one of {', '.join(GRANULARITIES[1:-1])}")
    return tuple(axis for axis in range(rank) if axis not in own_axes[granularity])
