"""In place of bench.engine.inside.process: rows of made-up figures, and the faults that FAKE_ENGINE describes, as JSON.

FAKE_ENGINE: variant, or "variant cell" -> a fault: "exit", "raise", "hang", "error"; a variant's is one of its start.
"""

import json
import os
import sys
import time
from pathlib import Path

from bench.engine.result import KernelTime, StepProfile
from bench.engine.task import PROFILE, READY, Task, cell_path, cells_of, row
from bench.record import files

STEP_MS = {"stock-bf16": 10.0, "stock-fp8": 10.1, "plugin-fp8": 8.0}


def fail(fault: str | None) -> None:
    if fault == "exit":
        os._exit(7)
    if fault == "raise":
        raise RuntimeError(f"CUDA error in {Path.home()}/kernel")
    if fault == "hang":
        time.sleep(600)


def main(task: Task) -> None:
    folder, name = Path(task.folder), task.labels["variant"]
    faults = json.loads(os.environ.get("FAKE_ENGINE", "{}"))
    print(
        "started",
        json.dumps({key: value for key, value in os.environ.items() if key.startswith("FP8_SINKS_")}),
        flush=True,
    )
    fail(faults.get(name))
    files.write_text("{}", folder / READY)
    for cell in cells_of(task):
        fault = faults.get(f"{name} {cell}")
        if time.time() > task.until:
            return
        fail(fault)
        if task.profile:
            kernel = KernelTime(name="kernel", calls=36, us=10.0)
            files.write(StepProfile(cell=str(cell), kernels={name: [kernel]}), folder / PROFILE)
            continue
        step_ms = STEP_MS[name] * (1 + 0.001 * task.labels["start"])
        figures = {"step_ms": step_ms, "mean_ms": step_ms, "tokens_per_s": 1e3 / step_ms, "batch": cell.batch or 4}
        figures |= {"start_s": 0.5, "distinct_tokens": 1, "capacity_tokens": 4096}
        files.write(
            row(task.labels, cell, **({"error": "no room"} if fault == "error" else figures)), cell_path(folder, cell)
        )


if __name__ == "__main__":
    main(Task.model_validate_json(Path(sys.argv[1]).read_bytes()))
