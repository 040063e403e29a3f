"""Roll the model out for a cell of `fp8-sinks bench rollout`: a task in, frames and records out, as files.

    python examples/world_model/cell.py TASK.json

bench/rollout/process.py describes the task and the files, which are written beside it.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from world.checkpoint import DEFAULT, load_checkpoint
from world.data import Clips, make_clips
from world.files import replacing, write_json
from world.model import WorldModel
from world.rollout import rollout
from world.settings import Requested, from_values

REFUSED = 2  # exit code
RANGE = (-1.0, 1.0)
PROFILED_FRAMES, KERNELS = 2, 12
COPIES = ("aten::clone", "aten::contiguous", "aten::copy_")


def main() -> None:
    path = Path(sys.argv[1])
    try:
        run(json.loads(path.read_text(encoding="utf-8")), path.parent)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        sys.exit(REFUSED)


def run(task: dict, folder: Path) -> None:
    requested = from_values(task["settings"])
    model = load_checkpoint(Path(task["checkpoint"]) if task["checkpoint"] else DEFAULT)
    clips = make_clips(task["clip_seed"], task["clips"], task["frames"], side=model.config.frame)
    if task["truth"]:
        save_frames(clips.frames, folder / "truth.safetensors")
    if task["shuffled"]:
        clips = replace(clips, controls=clips.controls.roll(1, 0))
    options = {"device": task["device"], "context": task["context"], "seed": task["seed"]}
    for mode in task["modes"]:
        frames, record = rollout(model, clips, requested, forced=mode == "teacher-forced", **options)
        save_frames(frames, folder / f"{mode}.safetensors")
        write_json(record, folder / f"{mode}.json")
    if task["speed"]:
        write_json(rollout(model, first(clips), requested, **options)[1], folder / "speed.json")
    if task["profile"]:
        write_json(profile(model, clips, requested, options), folder / "profile.json")


def profile(model: WorldModel, clips: Clips, requested: Requested, options: dict) -> dict:
    """Return calls and microseconds of the longest kernels (operators on a CPU), and the calls that copy tensors."""
    few = first(clips, frames=options["context"] + PROFILED_FRAMES)
    on_gpu = options["device"] == "cuda"
    with torch.profiler.profile() as profiler:
        rollout(model, few, requested, **options)
    events = profiler.key_averages()
    rows = [
        {
            "name": event.key,
            "calls": event.count,
            "us": event.self_device_time_total if on_gpu else event.self_cpu_time_total,
        }
        for event in events
    ]
    return {
        "kernels": sorted(rows, key=lambda row: -row["us"])[:KERNELS],
        "copies": sum(event.count for event in events if event.key in COPIES),
    }


def first(clips: Clips, frames: int | None = None) -> Clips:
    """Return the first clip alone, of so many frames."""
    return Clips(clips.frames[:1, :frames], clips.controls[:1, :frames])


def save_frames(frames: torch.Tensor, path: Path) -> None:
    with replacing(path) as part:
        save_file({"frames": frames.float().contiguous(), "range": torch.tensor(RANGE)}, part)


if __name__ == "__main__":
    main()
