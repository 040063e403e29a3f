"""Builds of the kernel: the source, the macros of each build, compiling and loading."""

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from lowp.cache_read.params import Params
from lowp.jit import compiler, launcher

SOURCE = compiler.Source("cache_read", Path(__file__).parent, ("kernel.cu", "convert.cuh", "../jit/ptx.cuh"))
THREADS = 256  # of a CTA
VALUES = 16  # of a row that a thread moves
MULTIPLE = 32  # of head_dim: two threads exchange halves
LOADED = 64  # bytes that a thread loads


@dataclass(frozen=True)
class Variant:
    """What a build depends on."""

    head_dim: int
    kv_heads: int
    kv_dtype: torch.dtype
    out_dtype: torch.dtype
    token_scales: bool = False
    channel_scales: bool = False

    @property
    def token_threads(self) -> int:
        """Threads that move a token's K and V."""
        return 2 * self.kv_heads * self.head_dim // VALUES

    @property
    def thread_rows(self) -> int:
        """Rows, one after the other, of which a thread moves a part."""
        return LOADED // (VALUES * self.kv_dtype.itemsize)


def defines(variant: Variant) -> dict[str, int]:
    """Return the macros that convert.cuh and kernel.cu expect."""
    return {
        "HEAD_DIM": variant.head_dim,
        "KV_HEADS": variant.kv_heads,
        "KV_E4M3": int(variant.kv_dtype == torch.float8_e4m3fn),
        "KV_INT8": int(variant.kv_dtype == torch.int8),
        "KV_BF16": int(variant.kv_dtype == torch.bfloat16),
        "OUT_BF16": int(variant.out_dtype == torch.bfloat16),
        "TOKEN_SCALES": int(variant.token_scales),
        "CHANNEL_SCALES": int(variant.channel_scales),
        "ROWS": variant.thread_rows,
        "THREADS": THREADS,
        "PARAMS_BYTES": ctypes.sizeof(Params),
    }


@functools.cache
def kernel(arch: str, variant: Variant, device_index: int) -> launcher.Kernel:
    """Load one build into the current device. device_index: its index, part of the cache key."""
    content = compiler.cubin(SOURCE, arch, defines(variant))
    return launcher.load(content, SOURCE.name, THREADS, shared_bytes=0)
