"""Codes of 4 bits: rounded values to and from nibbles, and two nibbles to a byte, the first in the low bits."""

from itertools import pairwise

import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # magnitudes by code; the sign is bit 3


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Put neighbours of the last axis into one byte. codes: uint8 below 16. Raises ValueError for an odd last axis."""
    if codes.shape[-1] % 2:
        raise ValueError(f"the last axis has {codes.shape[-1]} values of 4 bits; expected an even number")
    low, high = codes.unflatten(-1, (-1, 2)).unbind(-1)
    return low | (high << 4)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """Return the codes of `pack`, uint8."""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)


def to_e2m1(x: torch.Tensor) -> torch.Tensor:
    """Round finite fp32 within +-6 to the nearest E2M1 code, ties to the even code."""
    magnitude = x.abs()
    code = torch.zeros_like(x, dtype=torch.uint8)
    for lower, (below, above) in enumerate(pairwise(E2M1)):
        middle = (below + above) / 2
        # At the middle the even code wins: the upper one where the lower is odd.
        code += magnitude >= middle if lower % 2 else magnitude > middle
    return code | x.signbit().to(torch.uint8) << 3


def from_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Return the values of E2M1 codes in fp32."""
    exponent, mantissa = ((codes >> 1) & 3).float(), (codes & 1).float()
    magnitude = torch.where(exponent == 0, mantissa / 2, torch.exp2(exponent - 1) * (1 + mantissa / 2))
    return torch.where(codes >= 8, -magnitude, magnitude)


def to_int4(x: torch.Tensor) -> torch.Tensor:
    """Return the codes of integers within +-7: two's complement."""
    return x.to(torch.int8).view(torch.uint8) & 15


def from_int4(codes: torch.Tensor) -> torch.Tensor:
    """Return the integers of int4 codes in fp32."""
    return codes.float() - 16 * (codes >= 8)
