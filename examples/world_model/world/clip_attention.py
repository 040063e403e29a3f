"""Attention over whole clips in training, equal to what a rollout computes over its rings.

A clip is in the sequence two times. The history stream has every frame with the noise of cached frames; it is also what
the second sampling step sees. The draft stream has every frame as the first sampling step sees it. A frame of either
stream attends to itself and to the history stream's frames in the window of the layer before it, never to a draft.
"""

import torch
import torch.nn.functional as F

from world.config import Config
from world.model import Attend


def clip_mask(frames: int, history_frames: int, frame_tokens: int, device="cpu") -> torch.Tensor:
    """Return which keys each query sees, bool [tokens, tokens] of both streams: history, then draft."""
    frame = torch.arange(frames, device=device).repeat(2)
    is_draft = torch.arange(2 * frames, device=device) >= frames
    behind = frame[:, None] - frame
    past = (behind > 0) & (behind <= history_frames) & ~is_draft
    current = (behind == 0) & (is_draft[:, None] == is_draft)
    return (past | current).repeat_interleave(frame_tokens, 0).repeat_interleave(frame_tokens, 1)


def clip_attention(config: Config, frames: int, device="cpu") -> Attend:
    """Return the attention of a clip's two streams, for `WorldModel`."""
    masks = {
        history: clip_mask(frames, history, config.frame_tokens, device)
        for history in {config.history_frames(layer) for layer in range(config.layers)}
    }

    def attend(layer, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=masks[config.history_frames(layer)])

    return attend
