"""Builds of the kernel: the source, the macros of each build, compiling and loading."""

import functools
from pathlib import Path

import torch

from lowp.jit import compiler, launcher
from lowp.sink_decode.heuristic import Launch, Variant, shared_bytes

SOURCES = ("kernel.cu", "config.cuh", "ptx.cuh", "split.cuh", "load.cuh", "query.cuh", "step.cuh", "merge.cuh")
SOURCE = compiler.Source("sink_decode", Path(__file__).parent, SOURCES)


def defines(variant: Variant, launch: Launch) -> dict[str, int]:
    """Return the macros that config.cuh expects."""
    return {
        "HEAD_DIM": variant.head_dim,
        "QUERY_BF16": int(variant.query_bf16),
        "KV_E4M3": int(variant.kv_dtype == torch.float8_e4m3fn),
        "KV_INT8": int(variant.kv_dtype == torch.int8),
        "KV_BF16": int(variant.kv_dtype == torch.bfloat16),
        "QUERY_TOKENS": variant.query_tokens,
        "GROUP_TILES": variant.group_tiles,
        "TOKEN_SCALES": int(variant.token_scales),
        "CHANNEL_SCALES": int(variant.channel_scales),
        "WINDOW": int(variant.window),
        "INTERLEAVED": int(variant.interleaved),
        "WARPS": launch.warps,
        "STAGES": launch.stages,
        "TILES": launch.tiles,
        "CLUSTER": launch.cluster,
        "MIN_CTAS": launch.min_ctas,
        "EARLY": int(launch.early),
        "SHARED_BYTES": shared_bytes(variant, launch),
    }


def cubin(arch: str, variant: Variant, launch: Launch) -> bytes:
    """Load or compile one build; arch as nvcc names it (sm_90a), errors as of `compiler.cubin`."""
    return compiler.cubin(SOURCE, arch, defines(variant, launch))


@functools.cache
def kernel(arch: str, variant: Variant, launch: Launch, device_index: int) -> launcher.Kernel:
    """Load one build into the current device. device_index: its index, part of the cache key."""
    content = cubin(arch, variant, launch)
    return launcher.load(content, SOURCE.name, 32 * launch.warps, shared_bytes(variant, launch))
