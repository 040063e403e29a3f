"""Slots of a ring and the positions that they hold: token p is in slot p mod window."""

import torch


def slot_positions(slots, end, window: int):
    """Return the position that each slot holds after `end` committed tokens; negative where nothing is written yet."""
    return end - 1 - (end - 1 - slots) % window


def frame_slots(end: torch.Tensor, frame_tokens: int, window: int) -> torch.Tensor:
    """Return the slots of the next frame, int64 [frame_tokens]: those of the oldest frame in a full window."""
    return (end + torch.arange(frame_tokens, device=end.device)) % window


def newest_positions(end: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return the positions of the newest `tokens` tokens, oldest first; negative where there are fewer."""
    return end - tokens + torch.arange(tokens, device=end.device)
