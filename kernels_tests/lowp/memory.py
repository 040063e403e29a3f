"""Changed copies of tensors, for tests of what a call refuses."""

import torch


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with the last two axes exchanged in memory."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def replaced(tensor: torch.Tensor, index: int | tuple[int, ...], value: int) -> torch.Tensor:
    """A copy with one other entry."""
    changed = tensor.clone()
    changed[index] = value
    return changed
