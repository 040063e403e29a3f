"""Builds of the kernel: the source, the macros of each build, compiling and loading."""

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from lowp.cache_write.params import params_type
from lowp.jit import compiler, launcher

SOURCE = compiler.Source(
    "cache_write", Path(__file__).parent, ("kernel.cu", "convert.cuh", "ptx.cuh", "../jit/ptx.cuh")
)
THREADS = 256  # of a CTA
VALUES = 16  # that a thread writes


@dataclass(frozen=True)
class Variant:
    """What a build depends on. query_heads: 0 without rotation; table_dtype: of its cosines, else ignored."""

    head_dim: int
    kv_heads: int
    query_heads: int
    input_dtype: torch.dtype
    kv_dtype: torch.dtype
    table_dtype: torch.dtype
    count: bool
    computed_scales: bool = False
    channel_scales: bool = False

    @property
    def token_threads(self) -> int:
        """Threads that move a token's rows."""
        return (self.query_heads + 2 * self.kv_heads) * self.head_dim // VALUES


def defines(variant: Variant) -> dict[str, int]:
    """Return the macros that convert.cuh and kernel.cu expect."""
    return {
        "HEAD_DIM": variant.head_dim,
        "KV_HEADS": variant.kv_heads,
        "QUERY_HEADS": variant.query_heads,
        "INPUT_BF16": int(variant.input_dtype == torch.bfloat16),
        "KV_E4M3": int(variant.kv_dtype == torch.float8_e4m3fn),
        "KV_INT8": int(variant.kv_dtype == torch.int8),
        "KV_BF16": int(variant.kv_dtype == torch.bfloat16),
        "TABLE_FLOAT": int(variant.table_dtype == torch.float32),
        "COMPUTED_SCALES": int(variant.computed_scales),
        "CHANNEL_SCALES": int(variant.channel_scales),
        "COUNT": int(variant.count),
        "THREADS": THREADS,
        "PARAMS_BYTES": ctypes.sizeof(params_type(variant.computed_scales)),
    }


@functools.cache
def kernel(arch: str, variant: Variant, device_index: int) -> launcher.Kernel:
    """Load one build into the current device. device_index: its index, part of the cache key."""
    content = compiler.cubin(SOURCE, arch, defines(variant))
    return launcher.load(content, SOURCE.name, THREADS, shared_bytes=0)
