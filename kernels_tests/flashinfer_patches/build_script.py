"""Build gpt-oss's sink kernels as `fp8-sinks cache build` does, run each, and print the results as JSON.

test_build_gpu.py runs it in several processes at once. Arguments: the folder of the caches, a log of the start and end
of each compilation, and the number of modules to build.
"""

import json
import os
import sys
from pathlib import Path

from flashinfer_patches import sink_kernels

ROOT, LOG, COUNT = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
compile_module = sink_kernels.compile_module


def write_log(text: str) -> None:
    with open(LOG, "a") as log:
        log.write(f"{text}\n")


def logged_compile(*module) -> None:
    write_log(f"start {os.getpid()} {module[1]} with {len(list(ROOT.rglob('*.o')))} objects")
    compile_module(*module)
    write_log(f"end {os.getpid()} {module[1]}")


def faults() -> list[str]:
    """Run attention through the modules, and list its errors."""
    import torch

    from kernels_tests.flashinfer_patches import cases, runs

    workspace, errors = torch.zeros(128 << 20, dtype=torch.uint8, device="cuda"), []
    for _, kv_type, _ in sink_kernels.GPT_OSS:
        cache, q = cases.paged([1, 17, 300], getattr(torch, kv_type)), cases.queries(3, torch.bfloat16)
        sinks = cases.sinks_near(cases.reference(q, cache.tokens, None)[1])
        output = runs.plan_decode(workspace, cache).run(q, (cache.k, cache.v), sinks=sinks)
        errors += cases.faults(output, cases.reference(q, cache.tokens, sinks)[0])
    return errors


sink_kernels.compile_module = logged_compile
sink_kernels.GPT_OSS = sink_kernels.GPT_OSS[-COUNT:]
kernels = sink_kernels.build(ROOT)
objects = {str(path): path.stat().st_mtime_ns for path in ROOT.rglob("*.o")}
wrong = faults()
same = objects == {str(path): path.stat().st_mtime_ns for path in ROOT.rglob("*.o")}
print(json.dumps({"built": [module.built for module in kernels.modules], "faults": wrong, "ran what was built": same}))
