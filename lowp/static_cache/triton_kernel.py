"""Attention of a frame over a ring in storage formats: a Triton kernel for parts of the window, and one to merge them.

A program has BLOCK_M queries of one sequence and head, and one split of the window. It widens codes to BF16 in
registers, tile by tile, and keeps the running maximum, sum and output of the softmax. The last split continues with the
current frame, which is not in the ring. Scores are in units of log2.

    none, fixed: a scale of each head multiplies the scores (K), and the output of the history (V)
    token: K's scale multiplies the score, V's the probability, after the sum and before the second product
    block: a power of two multiplies the widened codes, exactly
"""

import triton
import triton.language as tl

# Probabilities reach 2^12: in FP16 those from 2^-26 of the largest on have all of their bits.
HEADROOM = tl.constexpr(12.0)
# The maximum of no scores: finite, so that the difference of two is not NaN.
EMPTY = tl.constexpr(-1e38)


@triton.jit
def attend_split(
    q,  # BF16 [rows, frame_tokens, HEAD_DIM], rows = batch x heads; new_k and new_v likewise
    new_k,
    new_v,
    k_codes,  # BF16 [rows, slots, HEAD_DIM], or bytes [rows, slots, HEAD_DIM, or half of it]
    v_codes,
    k_scale,  # fp32 [heads] (fixed) or [rows, slots] (token), E8M0 bytes [rows, slots, HEAD_DIM / 32], or None
    v_scale,
    end,  # int64, no axes: committed tokens
    out,  # BF16 [rows, frame_tokens, HEAD_DIM] of one split, otherwise fp32 [SPLITS, rows, frame_tokens, HEAD_DIM]
    lse,  # fp32 [SPLITS, rows, frame_tokens] in log2, or None for one split
    heads,
    slots,
    window,
    frame_tokens,
    log2_scale,
    K_FORMAT: tl.constexpr,
    V_FORMAT: tl.constexpr,
    K_SCALING: tl.constexpr,
    V_SCALING: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_NEW: tl.constexpr,
    SPLITS: tl.constexpr,
    K_TYPE: tl.constexpr,
    V_TYPE: tl.constexpr,
    BF16: tl.constexpr,
):
    split, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    tokens = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, HEAD_DIM)
    frame = row * frame_tokens * HEAD_DIM
    in_frame = tokens < frame_tokens
    elements = frame + tokens[:, None] * HEAD_DIM + dims[None, :]
    queries = tl.load(q + elements, mask=in_frame[:, None], other=0.0)
    k_queries, unit = queries.to(K_TYPE), 1.0
    if tl.float16 == K_TYPE:
        unit = power_of_two(queries.to(tl.float32))
        k_queries = (queries.to(tl.float32) / unit).to(tl.float16)

    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    top = tl.full([BLOCK_M], EMPTY, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)

    written = written_slots(end, window)
    length = tl.cdiv(tl.cdiv(written, BLOCK_N), SPLITS) * BLOCK_N
    first = tl.minimum(split * length, written)
    limit = tl.minimum(first + length, written)
    full_end = first + (limit - first) // BLOCK_N * BLOCK_N

    head_k_scale = log2_scale * unit
    if K_SCALING == "fixed":
        head_k_scale *= tl.load(k_scale + row % heads)
    for start in range(first, full_end, BLOCK_N):
        k = load_tile(k_codes, k_scale, row * slots + start, None, K_FORMAT, K_SCALING, HEAD_DIM, BLOCK_N, K_TYPE)
        v = load_tile(v_codes, v_scale, row * slots + start, None, V_FORMAT, V_SCALING, HEAD_DIM, BLOCK_N, V_TYPE)
        k_factor = load_factor(k_scale, row * slots + start, None, K_SCALING, BLOCK_N)
        v_factor = load_factor(v_scale, row * slots + start, None, V_SCALING, BLOCK_N)
        acc, top, total = accumulate(k_queries, k, v, head_k_scale, k_factor, v_factor, None, acc, top, total, BLOCK_N)
    if full_end < limit:
        left = limit - full_end
        k = load_tile(k_codes, k_scale, row * slots + full_end, left, K_FORMAT, K_SCALING, HEAD_DIM, BLOCK_N, K_TYPE)
        v = load_tile(v_codes, v_scale, row * slots + full_end, left, V_FORMAT, V_SCALING, HEAD_DIM, BLOCK_N, V_TYPE)
        k_factor = load_factor(k_scale, row * slots + full_end, left, K_SCALING, BLOCK_N)
        v_factor = load_factor(v_scale, row * slots + full_end, left, V_SCALING, BLOCK_N)
        acc, top, total = accumulate(k_queries, k, v, head_k_scale, k_factor, v_factor, left, acc, top, total, BLOCK_N)
    if V_SCALING == "fixed":
        acc *= tl.load(v_scale + row % heads)
    if split == SPLITS - 1:
        for start in tl.range(0, frame_tokens, BLOCK_NEW, num_stages=1):
            base, left = row * frame_tokens + start, frame_tokens - start
            k = load_tile(new_k, None, base, left, "bf16", "none", HEAD_DIM, BLOCK_NEW, BF16)
            v = load_tile(new_v, None, base, left, "bf16", "none", HEAD_DIM, BLOCK_NEW, BF16)
            unscaled = load_factor(None, base, None, "none", BLOCK_NEW)
            acc, top, total = accumulate(
                queries.to(BF16), k, v, log2_scale, unscaled, unscaled, left, acc, top, total, BLOCK_NEW
            )

    result = acc / tl.where(total > 0, total, 1)[:, None]
    if SPLITS == 1:
        tl.store(out + elements, result.to(out.dtype.element_ty), mask=in_frame[:, None])
    else:
        rows = tl.num_programs(2)
        plane = split.to(tl.int64) * rows * frame_tokens
        tl.store(out + plane * HEAD_DIM + elements, result, mask=in_frame[:, None])
        tl.store(lse + plane + row * frame_tokens + tokens, log2_sum(top, total), mask=in_frame)


@triton.jit
def merge_splits(parts, lse, out, tokens, HEAD_DIM: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """Weigh the splits' outputs [SPLITS, tokens, HEAD_DIM] by their share of the softmax's sum."""
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    elements = token[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    exists = token < tokens
    acc = tl.zeros([BLOCK, HEAD_DIM], tl.float32)
    top = tl.full([BLOCK], EMPTY, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for split in range(SPLITS):
        part_lse = tl.load(lse + split * tokens + token, mask=exists, other=0.0)
        part = tl.load(parts + split * tokens * HEAD_DIM + elements, mask=exists[:, None], other=0.0)
        new_top = tl.maximum(top, part_lse)
        shrink, weight = tl.exp2(top - new_top), tl.exp2(part_lse - new_top)
        acc = acc * shrink[:, None] + part * weight[:, None]
        total = total * shrink + weight
        top = new_top
    tl.store(out + elements, (acc / total[:, None]).to(out.dtype.element_ty), mask=exists[:, None])


@triton.jit
def written_slots(end, window):
    """Frames fill the slots in order: slot s is written if s < end (see `slots.slot_positions`)."""
    return tl.minimum(tl.load(end), window).to(tl.int32)


@triton.jit
def accumulate(q, k, v, scale, k_factor, v_factor, left, acc, top, total, BLOCK_N: tl.constexpr):
    """Add a tile of keys and values to the softmax. left: its slots that count; None for all.

    scale: positive, so that it is applied after the maximum, in the same instruction as the difference.
    """
    scores = tl.dot(q, tl.trans(k)) * k_factor[None, :]
    if left is not None:
        scores = tl.where((tl.arange(0, BLOCK_N) < left)[None, :], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * scale - HEADROOM)
    p = tl.exp2(scores * scale - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot((p * v_factor[None, :]).to(v.dtype), v, acc * shrink[:, None])
    return acc, new_top, total


@triton.jit
def power_of_two(x):
    """Return the power of two at or under the largest magnitude of x; 2^-60 where that is smaller."""
    bits = tl.max(tl.max(tl.abs(x), 1), 0).to(tl.int32, bitcast=True)
    return tl.maximum(bits & 0x7F800000, (127 - 60) << 23).to(tl.float32, bitcast=True)


@triton.jit
def log2_sum(top, total):
    return tl.where(total > 0, top + tl.log2(tl.where(total > 0, total, 1)), float("-inf"))


@triton.jit
def load_factor(scale, base, left, SCALING: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return the scales [BLOCK_N] of tokens from `base` on; 1 if they have none of their own."""
    slots = tl.arange(0, BLOCK_N)
    if SCALING != "token":
        return tl.full([BLOCK_N], 1.0, tl.float32)
    elif left is None:
        return tl.load(scale + base + slots)
    else:
        return tl.load(scale + base + slots, mask=slots < left, other=0.0)


@triton.jit
def load_tile(
    codes,
    scale,
    base,
    left,
    FORMAT: tl.constexpr,
    SCALING: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TYPE: tl.constexpr,
):
    """Return codes of BLOCK_N slots from `base` on, times scales of blocks if any, [BLOCK_N, HEAD_DIM].

    Slots from `left` on are not read, and are 0.
    """
    PACKED: tl.constexpr = FORMAT == "int4" or FORMAT == "mxfp4"
    # Of joined nibbles Triton 3.6 gives a thread 8 neighbours of a product's inner axis, 4 threads side by side.
    tl.static_assert(not PACKED or (BLOCK_N >= 32 and HEAD_DIM >= 32), "4 bits: inner axes of 32 or more")
    WIDTH: tl.constexpr = HEAD_DIM // 2 if PACKED else HEAD_DIM
    slots = tl.arange(0, BLOCK_N)
    pointers = codes + base * WIDTH + slots[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    stored = tl.load(pointers) if left is None else tl.load(pointers, mask=(slots < left)[:, None], other=0)
    tile = widen(stored, FORMAT)
    if SCALING == "block":
        BLOCKS: tl.constexpr = HEAD_DIM // 32
        pointers = scale + base * BLOCKS + slots[:, None] * BLOCKS + tl.arange(0, BLOCKS)[None, :]
        powers = tl.load(pointers) if left is None else tl.load(pointers, mask=(slots < left)[:, None], other=127)
        # The exponent of fp32 has E8M0's bias.
        powers = (powers.to(tl.int32) << 23).to(tl.float32, bitcast=True)
        tile = tl.reshape(tl.reshape(tile, [BLOCK_N, BLOCKS, 32]) * powers[:, :, None], [BLOCK_N, HEAD_DIM])
    return tile.to(TYPE)


@triton.jit
def widen(stored, FORMAT: tl.constexpr):
    """Return the values of codes as floating point."""
    if FORMAT == "int4":
        return tl.interleave(from_int4(stored & 15), from_int4(stored >> 4))
    elif FORMAT == "mxfp4":
        return tl.interleave(from_e2m1(stored & 15), from_e2m1(stored >> 4))
    elif FORMAT == "int8":
        return stored.to(tl.int8, bitcast=True).to(tl.float32)
    elif FORMAT == "e5m2":
        return stored.to(tl.float8e5, bitcast=True).to(tl.float32)
    elif FORMAT == "bf16":
        return stored
    else:
        return stored.to(tl.float8e4nv, bitcast=True).to(tl.float32)


@triton.jit
def from_int4(code):
    return ((code.to(tl.int32) ^ 8) - 8).to(tl.float32)


@triton.jit
def from_e2m1(code):
    """Bits s ee m: fp32's sign, exponent and first bit of the mantissa, but for the subnormals 0 and 0.5 (ee = 0)."""
    code = code.to(tl.int32)
    magnitude = tl.where(code & 6 == 0, (code & 1) * 0x3F000000, ((code & 7) << 22) + (126 << 23))
    return (magnitude | ((code & 8) << 28)).to(tl.float32, bitcast=True)
