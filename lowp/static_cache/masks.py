"""FlexAttention's block mask over a ring: built once, changed in place when a frame is committed.

All queries of a frame see the whole history and the frame itself, and slots fill in order: the written blocks are the
first ones, and a mask depends on their count alone. Blocks divide the window, not the frame: short frames are read
many at a time. While the window fills, one block may be written in part; no other block of the history evaluates
`mask_mod`, and a full window has none.
"""

import math

import torch
from torch.nn.attention.flex_attention import BlockMask

from lowp.static_cache.slots import slot_positions

LARGEST_BLOCK = 128


def build_block_mask(window: int, frame_tokens: int, tail_tokens: int, end: torch.Tensor) -> BlockMask:
    """Return the mask of frame_tokens queries over window + tail_tokens slots, for a ring of `end` committed tokens.

    The tail, if any, holds the current frame; its blocks come first in the list of blocks that evaluate `mask_mod`.
    """
    block = math.gcd(window, LARGEST_BLOCK)
    blocks = math.ceil((window + tail_tokens) / block)
    tail = torch.arange(window // block, blocks)
    partial, full = (torch.zeros(1, 1, 1, blocks, dtype=torch.int32, device=end.device) for _ in range(2))
    partial[..., : len(tail)] = tail
    full[:] = torch.arange(blocks)
    partial_count, full_count = (torch.zeros(1, 1, 1, dtype=torch.int32, device=end.device) for _ in range(2))

    def mask_mod(batch, head, query, slot):
        return (slot >= window) | (slot_positions(slot, end, window) >= 0)

    mask = BlockMask.from_kv_blocks(
        partial_count,
        partial,
        full_count,
        full,
        BLOCK_SIZE=(max(LARGEST_BLOCK, 1 << (frame_tokens - 1).bit_length()), block),
        mask_mod=mask_mod,
        seq_lengths=(frame_tokens, window + tail_tokens),
        compute_q_blocks=False,
    )
    refresh_block_mask(mask, window, end)
    return mask


def refresh_block_mask(mask: BlockMask, window: int, end: torch.Tensor) -> None:
    """Set the mask's blocks, in place, to what is written after `end` committed tokens."""
    block = mask.BLOCK_SIZE[1]
    tail_blocks = mask.kv_indices.shape[-1] - window // block
    written = end.clamp(max=window)
    mask.full_kv_num_blocks.copy_(written // block)
    mask.kv_num_blocks.copy_(tail_blocks + (written % block > 0))
    # Behind the tail's blocks comes the one that is written in part, if the count includes it.
    if tail_blocks < mask.kv_indices.shape[-1]:
        mask.kv_indices[..., tail_blocks].copy_((written // block).clamp(max=window // block - 1))
