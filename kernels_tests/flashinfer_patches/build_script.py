"""Builds gpt-oss's sink kernels as `fp8-sinks cache build` does, runs each, and prints what came of it as JSON.

test_build_gpu.py runs it in several processes at once. Arguments: the folder of the caches, a file in which each
compilation notes its begin and end, and how many of the modules to build.
"""

import json
import os
import sys
from pathlib import Path

from flashinfer_patches import sink_kernels

ROOT, LOG, COUNT = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
compile_module = sink_kernels.compile_module


def note(text: str) -> None:
    with open(LOG, "a") as log:
        log.write(f"{text}\n")


def noted(*module) -> None:
    note(f"begin {os.getpid()} {module[1]} with {len(list(ROOT.rglob('*.o')))} objects")
    compile_module(*module)
    note(f"end {os.getpid()} {module[1]}")


def faults() -> list[str]:
    """List the faults of attention through the modules that this process now loads."""
    import torch

    from kernels_tests.flashinfer_patches import cases, runs

    workspace, failures = torch.zeros(128 << 20, dtype=torch.uint8, device="cuda"), []
    for _, kv_type, _ in sink_kernels.GPT_OSS:
        cache, q = cases.paged([1, 17, 300], getattr(torch, kv_type)), cases.queries(3, torch.bfloat16)
        sinks = cases.sinks_near(cases.attention(q, cache, None)[1])
        output = runs.plan_decode(workspace, cache).run(q, (cache.k, cache.v), sinks=sinks)
        failures += cases.faults(output, cases.attention(q, cache, sinks)[0])
    return failures


sink_kernels.compile_module = noted
sink_kernels.GPT_OSS = sink_kernels.GPT_OSS[-COUNT:]
kernels = sink_kernels.build(ROOT)
objects = {str(path): path.stat().st_mtime_ns for path in ROOT.rglob("*.o")}
wrong = faults()
same = objects == {str(path): path.stat().st_mtime_ns for path in ROOT.rglob("*.o")}
print(json.dumps({"built": [module.built for module in kernels.modules], "faults": wrong, "ran what was built": same}))
