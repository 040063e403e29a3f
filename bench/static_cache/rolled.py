"""The earlier design, to be measured: a window that is rolled, dequantised and concatenated. int8 by token and head.

As its code has it: scales in BF16, so that dequantising is one product; a commit copies the window, moved by a frame.
"""

from dataclasses import dataclass

import torch

from lowp.formats import amax_scale, quantize


@dataclass(frozen=True)
class RolledSide:
    """K or V of a layer, oldest token first. codes: BF16 or int8 [1, heads, window, head_dim]. scale: BF16 or None."""

    codes: torch.Tensor
    scale: torch.Tensor | None


def make(x: torch.Tensor, kv_format: str) -> RolledSide:
    """Return a full window of x [1, heads, window, head_dim], BF16."""
    if kv_format == "bf16":
        return RolledSide(x, None)
    scale = amax_scale(x, kv_format, "token_head", "HND")
    return RolledSide(quantize(x, kv_format, scale).values, scale.bfloat16())


def concatenate(side: RolledSide, new: torch.Tensor) -> torch.Tensor:
    """Return the dequantised window, followed by the current frame."""
    past = side.codes if side.scale is None else side.codes * side.scale
    return torch.cat([past, new], 2)


def commit(side: RolledSide, new: torch.Tensor, kv_format: str) -> RolledSide:
    """Return the window without its oldest frame, followed by a new one."""
    tokens, frame = new.shape[2], make(new, kv_format)
    codes = torch.cat([side.codes[:, :, tokens:], frame.codes], 2)
    return RolledSide(codes, None if side.scale is None else torch.cat([side.scale[:, :, tokens:], frame.scale], 2))
