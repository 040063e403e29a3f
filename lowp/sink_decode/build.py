"""Builds of the kernel: the source, the macros of each build, compiling and loading."""

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from lowp.jit import compiler, launcher
from lowp.sink_decode.resources import Launch, Variant, shared_bytes

SOURCES = (
    *("kernel.cu", "config.cuh", "ptx.cuh", "split.cuh", "load.cuh", "state.cuh"),
    *("int8.cuh", "step.cuh", "query.cuh", "merge.cuh", "../jit/ptx.cuh"),
)
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
        "LEAST_STEPS": launch.least_steps,
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


def load_all(arch: str, variant: Variant, launches: set[Launch], device_index: int) -> int:
    """Compile the launches of a variant, as many at once as there are CPUs, and load them into the current device.

    Returns the number of builds.
    """
    distinct = {tuple(defines(variant, launch).values()): launch for launch in launches}.values()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(functools.partial(cubin, arch, variant), distinct))
    for launch in launches:
        kernel(arch, variant, launch, device_index)
    return len(distinct)
