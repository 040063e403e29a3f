"""Parts of the kernel to be replaced: wrong ones, each of which must fail, and one that rounds as a GPU does."""

import triton
import triton.language as tl

from lowp.static_cache.triton_kernel import HEADROOM, from_int4


@triton.jit
def written_a_frame_early(end, window):
    return tl.minimum(tl.load(end) + 8, window).to(tl.int32)


@triton.jit
def v_scale_in_the_denominator(q, k, v, scale, k_factor, v_factor, left, acc, top, total, BLOCK_N: tl.constexpr):
    scores = tl.dot(q, tl.trans(k)) * k_factor[None, :]
    if left is not None:
        scores = tl.where((tl.arange(0, BLOCK_N) < left)[None, :], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * scale - HEADROOM)
    p = tl.exp2(scores * scale - new_top[:, None]) * v_factor[None, :]
    shrink = tl.exp2(top - new_top)
    return tl.dot(p.to(v.dtype), v, acc * shrink[:, None]), new_top, total * shrink + tl.sum(p, 1)


@triton.jit
def scale_of_the_next_token(scale, base, left, SCALING: tl.constexpr, BLOCK_N: tl.constexpr):
    slots = (tl.arange(0, BLOCK_N) + 1) % BLOCK_N
    if SCALING != "token":
        return tl.full([BLOCK_N], 1.0, tl.float32)
    elif left is None:
        return tl.load(scale + base + slots)
    else:
        return tl.load(scale + base + slots, mask=slots < left, other=0.0)


@triton.jit
def swapped_nibbles(stored, FORMAT: tl.constexpr):
    if FORMAT == "int4":
        return tl.interleave(from_int4(stored >> 4), from_int4(stored & 15))
    else:
        return stored


@triton.jit
def to_bf16(x):
    """Round fp32 to the nearest value of BF16, ties to even: the interpreter truncates."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def probabilities_in_bf16(q, k, v, scale, k_factor, v_factor, left, acc, top, total, BLOCK_N: tl.constexpr):
    scores = tl.dot(q, tl.trans(k)) * k_factor[None, :]
    if left is not None:
        scores = tl.where((tl.arange(0, BLOCK_N) < left)[None, :], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * scale - HEADROOM)
    p = tl.exp2(scores * scale - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    weights = p * v_factor[None, :]
    if v.dtype == tl.float32:  # stands for BF16
        weights = to_bf16(weights)
    return tl.dot(weights.to(v.dtype), v, acc * shrink[:, None]), new_top, total * shrink + tl.sum(p, 1)


# By name: the function that a mutant replaces, and a storage.
MUTANTS = {
    "slots": ("written_slots", written_a_frame_early, "K int8 token, V int8 token"),
    "denominator": ("accumulate", v_scale_in_the_denominator, "K bf16, V int8 token"),
    "token of K": ("load_factor", scale_of_the_next_token, "K e5m2 token, V e4m3 head"),
    "token of V": ("load_factor", scale_of_the_next_token, "K bf16, V int8 token"),
    "nibbles": ("widen", swapped_nibbles, "K int4 block, V int4 token"),
}
