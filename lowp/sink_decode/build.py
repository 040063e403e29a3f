"""The kernel's source, what a build of it is compiled for, and its loading."""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from lowp.jit import compiler, launcher
from lowp.sink_decode.heuristic import Launch, Problem, shared_bytes

SOURCES = ("kernel.cu", "config.cuh", "ptx.cuh", "split.cuh", "load.cuh", "query.cuh", "step.cuh", "merge.cuh")
SOURCE = compiler.Source("sink_decode", Path(__file__).parent, SOURCES)


@dataclass(frozen=True)
class Config:
    """One build of the kernel; arch as nvcc names it (sm_90a)."""

    arch: str
    problem: Problem
    launch: Launch

    @property
    def shared_bytes(self) -> int:
        return shared_bytes(self.problem, self.launch)

    @property
    def defines(self) -> dict[str, int]:
        """The macros that config.cuh expects."""
        problem, launch = self.problem, self.launch
        return {
            "HEAD_DIM": problem.head_dim,
            "QUERY_BF16": int(problem.query_bf16),
            "KV_E4M3": int(problem.kv_dtype == torch.float8_e4m3fn),
            "KV_INT8": int(problem.kv_dtype == torch.int8),
            "KV_BF16": int(problem.kv_dtype == torch.bfloat16),
            "QUERY_TOKENS": problem.query_tokens,
            "GROUP_TILES": problem.group_tiles,
            "TOKEN_SCALES": int(problem.token_scales),
            "CHANNEL_SCALES": int(problem.channel_scales),
            "WINDOW": int(problem.window),
            "INTERLEAVED": int(problem.interleaved),
            "WARPS": launch.warps,
            "STAGES": launch.stages,
            "TILES": launch.tiles,
            "CLUSTER": launch.cluster,
            "MIN_CTAS": launch.min_ctas,
            "EARLY": int(launch.early),
            "SHARED_BYTES": self.shared_bytes,
        }


def cubin(config: Config) -> bytes:
    """Load or compile one build; errors as of `compiler.cubin`."""
    return compiler.cubin(SOURCE, config.arch, config.defines)


@functools.cache
def kernel(config: Config, device_index: int) -> launcher.Kernel:
    """Load one build into the current device, whose index is given."""
    return launcher.load(cubin(config), SOURCE.name, 32 * config.launch.warps, config.shared_bytes)
