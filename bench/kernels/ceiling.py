"""The read ceiling: how fast this GPU reads its memory, measured. Needs Triton.

`python -m bench.kernels.ceiling FILE` writes it as JSON, bytes/s, in a process that then frees the GPU.
"""

import json
import sys
from functools import partial
from pathlib import Path
from statistics import median

import torch
import triton
import triton.language as tl

from bench.kernels.timing import graph_us
from bench.record.files import write_text

SWEPT_BYTES = 2 << 30
# Values per step, steps per program, warps: which is fastest differs from GPU to GPU.
VARIANTS = [(2048, 32, 4), (4096, 16, 8), (4096, 64, 8), (8192, 16, 8)]


@triton.jit
def _sweep(values, sums, WIDTH: tl.constexpr, STEPS: tl.constexpr):
    program = tl.program_id(0)
    total = tl.zeros((WIDTH,), tl.int32)
    for step in range(STEPS):
        total += tl.load(values + (program * STEPS + step) * WIDTH + tl.arange(0, WIDTH))
    tl.store(sums + program, tl.sum(total))


def read_ceiling() -> float:
    """Bytes per second of the fastest of VARIANTS over SWEPT_BYTES of random integers, each read once a sweep."""
    values = torch.randint(0, 100, (SWEPT_BYTES // 4,), dtype=torch.int32, device="cuda")
    expected = values.sum()
    best = 0.0
    for width, steps, warps in VARIANTS:
        programs = values.numel() // (width * steps)
        sums = torch.empty(programs, dtype=torch.int32, device="cuda")
        sweep = partial(_sweep[(programs,)], values, sums, width, steps, num_warps=warps)
        seconds = median(graph_us([sweep], sums.zero_)) * 1e-6
        if sums.sum() != expected:
            raise RuntimeError(f"a sweep of {width} values, {steps} steps and {warps} warps did not read all values")
        best = max(best, values.nbytes / seconds)
    return best


if __name__ == "__main__":
    write_text(json.dumps(read_ceiling()), Path(sys.argv[1]))
