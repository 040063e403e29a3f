"""Attention over a ring by a kernel of ours: codes are widened in registers, no dequantised copy is made.

One operator of torch, opaque to the compiler: no graph break, and a launch that depends on shapes alone.
"""

import math
import os
from dataclasses import dataclass

import torch

from lowp.jit.device import device_of
from lowp.static_cache.ring import Ring
from lowp.static_cache.store import as_bytes

SCALING = {"token_head": "token", "ema": "token"}  # as the kernel sees it, where the store's word differs
HEAD_DIMS = (32, 64, 128)
MERGED = 4  # tokens of a program that merges splits
SPLIT_TILES = 3
MAX_SPLITS = 64
MOST_ROWS = 65_535  # programs along an axis of the grid
LARGE_SHARED_BYTES = 128 << 10  # of a block: SM90 has more, SM120 less


@dataclass(frozen=True)
class Launch:
    """Tile of queries and of slots, splits of the window, and how a program runs."""

    block_m: int
    block_n: int
    splits: int
    warps: int
    stages: int


def attention(q, ring: Ring, new_k, new_v) -> torch.Tensor:
    """Return the attention of q [batch, heads, frame_tokens, head_dim] in BF16; see `reference`."""
    if ring.dtype != torch.bfloat16:
        raise NotImplementedError(f"triton computes in torch.bfloat16; got a cache of {ring.dtype}")
    head_dim = ring.k.head_dim
    if head_dim not in HEAD_DIMS:
        raise NotImplementedError(
            f"triton has no head_dim {head_dim}; expected one of {', '.join(map(str, HEAD_DIMS))}"
        )
    for store in (ring.k, ring.v):
        if store.kv_format in ("fp16", "fp32"):
            raise NotImplementedError(f"triton does not read {store.kv_format}; expected bf16 or 8 bits or less")
    k, v = ring.k, ring.v
    return ring_attention(
        q,
        new_k,
        new_v,
        k.codes,
        v.codes,
        k.scale,
        v.scale,
        ring.end,
        ring.window,
        k.kv_format,
        v.kv_format,
        *(SCALING.get(store.scaling, store.scaling) for store in (k, v)),
    )


def choose_launch(rows: int, frame_tokens: int, window: int, sms: int, shared_bytes: int) -> Launch:
    """Return the launch for a shape: tiles by the length of a frame, splits by the time that they are expected to take.

    Programs run in waves of those that an SM holds, limited by registers. A program takes the time of its tiles, and of
    SPLIT_TILES more for its start and its output in fp32, which is read again. All outputs together are under a tenth
    of the window in BF16.

    rows: sequences x heads. window: tokens of history. shared_bytes: of shared memory that a block may have.
    """
    block_m = min(128, max(16, 1 << (frame_tokens - 1).bit_length()))
    warps, resident = {16: (4, 3), 32: (4, 3), 64: (4, 2), 128: (8, 1)}[block_m]
    block_n, stages = (128, 3) if shared_bytes >= LARGE_SHARED_BYTES else (64, 2)
    programs, tiles = rows * -(-frame_tokens // block_m), -(-window // block_n)

    def time(splits: int) -> int:
        return -(-programs * splits // (resident * sms)) * (-(-tiles // splits) + SPLIT_TILES)

    most = max(1, min(MAX_SPLITS, tiles // SPLIT_TILES, window // (11 * frame_tokens)))
    return Launch(block_m, block_n, min(range(1, most + 1), key=time), warps, stages)


@torch.library.custom_op("lowp::ring_attention", mutates_args=())
def ring_attention(
    q: torch.Tensor,
    new_k: torch.Tensor,
    new_v: torch.Tensor,
    k_codes: torch.Tensor,
    v_codes: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    end: torch.Tensor,
    window: int,
    k_format: str,
    v_format: str,
    k_scaling: str,
    v_scaling: str,
) -> torch.Tensor:
    """Launch the kernel; shapes and dtypes as in `triton_kernel.attend_split`, scales none, fixed, token or block.

    Raises NotImplementedError on a CPU outside Triton's interpreter.
    """
    if not q.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise NotImplementedError(f"triton needs a GPU; got tensors on {q.device}")
    batch, heads, frame_tokens, head_dim = q.shape
    rows = batch * heads
    launch = choose_launch(rows, frame_tokens, window, *device_limits(q.device))
    if rows > MOST_ROWS or launch.splits * q.numel() >= 2**31:
        raise NotImplementedError(
            f"triton takes up to {MOST_ROWS} sequences x heads and 2**31 - 1 partial outputs; got {rows} and "
            f"{launch.splits * q.numel()}"
        )
    # Not at import: where no GPU is, triton may not be installed.
    from lowp.static_cache import triton_kernel as kernels

    out = torch.empty_like(q, dtype=q.dtype if q.is_cuda else torch.float32)  # the interpreter truncates to BF16
    parts, lse = out, None
    if launch.splits > 1:
        parts = torch.empty(launch.splits, *q.shape, dtype=torch.float32, device=q.device)
        lse = torch.empty(launch.splits, rows, frame_tokens, dtype=torch.float32, device=q.device)
    kernels.attend_split[-(-frame_tokens // launch.block_m), launch.splits, rows](
        q,
        new_k,
        new_v,
        as_bytes(k_codes),
        as_bytes(v_codes),
        k_scale,
        v_scale,
        end,
        parts,
        lse,
        heads,
        k_codes.shape[2],
        window,
        frame_tokens,
        math.log2(math.e) / math.sqrt(head_dim),
        k_format,
        v_format,
        k_scaling,
        v_scaling,
        head_dim,
        launch.block_m,
        launch.block_n,
        min(launch.block_n, launch.block_m),
        launch.splits,
        *product_types(q.is_cuda, (k_format, k_scaling), (v_format, v_scaling)),
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    if launch.splits > 1:
        tokens = rows * frame_tokens
        kernels.merge_splits[(-(-tokens // MERGED),)](parts, lse, out, tokens, head_dim, launch.splits, MERGED)
    return out.to(q.dtype)


@ring_attention.register_fake
def _(q, *_):
    return torch.empty_like(q)


def product_types(on_gpu: bool, k_storage: tuple[str, str], v_storage: tuple[str, str]) -> list:
    """Return the types of the products with K, V and the current frame.

    FP16 where E4M3 and E5M2 need no range beyond it: on Hopper one instruction widens two values, BF16 needs four.
    Otherwise BF16; fp32 in Triton's interpreter, which truncates to BF16 and multiplies its bits as integers.
    """
    import triton.language as tl

    bf16 = tl.bfloat16 if on_gpu else tl.float32
    fp8 = ("e4m3", "e5m2")
    k_type = tl.float16 if k_storage[0] in fp8 and k_storage[1] != "block" else bf16
    v_type = tl.float16 if v_storage[0] in fp8 and v_storage[1] in ("none", "fixed") else bf16
    return [k_type, v_type, bf16]


def device_limits(device: torch.device) -> tuple[int, int]:
    """Return the SMs of a GPU and the shared memory of a block; those of a small one on a CPU, which interprets."""
    if device.type != "cuda":
        return 1, LARGE_SHARED_BYTES
    properties = device_of(device)
    return properties.sms, properties.shared_per_cta
