"""A world model that draws nothing: `python fake_script.py TASK.json` writes the truth with an error known beforehand.

Settings of its own: `error`, the size of every pixel's error, 10% larger with each clip; `fault`, what goes wrong.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

DEFAULTS = {"mxfp_enable": False, "fp8_kv": False, "kv_storage": "mxfp", "k_fp8": False, "compile": False}
DEFAULTS |= {"kv_late_layers": 0, "error": 0.02, "fault": None, "ms": 10.0, "mxfp_scope": "all"}
SIZE = 16
RANGE = (-1.0, 1.0)


def main() -> None:
    path = Path(sys.argv[1])
    task = json.loads(path.read_text())
    settings = DEFAULTS | task["settings"]
    with (path.parent / "calls").open("a") as calls:
        calls.write("run\n")
    if settings["fault"] == "refuse":
        refuse()
    if settings["fault"] == "die":
        raise RuntimeError("CUDA error: an illegal memory access")
    truth = np.random.default_rng(task["clip_seed"]).uniform(-0.5, 0.5, (task["clips"], task["frames"], 3, SIZE, SIZE))
    if task["truth"]:
        write(path.parent / "truth.safetensors", truth)
    frames = spoiled(truth[:, task["context"] :], settings, task["shuffled"])
    for mode in task["modes"]:
        write(path.parent / f"{mode}.safetensors", frames)
        (path.parent / f"{mode}.json").write_text(json.dumps(record(settings, task)))
    if task["speed"]:
        (path.parent / "speed.json").write_text(json.dumps(record(settings, task)))
    if task["profile"]:
        profile = {"kernels": [{"name": "gemm", "calls": 2, "us": 5.0}], "copies": 3}
        (path.parent / "profile.json").write_text(json.dumps(profile))


def refuse() -> None:
    sys.stderr.write("kernel 'float8-row' needs SM89\n")
    sys.exit(2)


def spoiled(truth: np.ndarray, settings: dict, shuffled: bool) -> np.ndarray:
    sizes = settings["error"] * (1 + 0.1 * np.arange(len(truth)))
    sizes = 1.4 * sizes if shuffled and settings["fault"] != "deaf" else sizes
    frames = truth + sizes[:, None, None, None, None]
    match settings["fault"]:
        case "black":
            frames[0, 1] = -1
        case "frozen":
            frames[0, 1] = frames[0, 0]
        case "nan":
            frames[0, 0, 0, 0, 0] = np.nan
        case "nan, shuffled" if shuffled:
            frames[0, 0, 0, 0, 0] = np.nan
        case "smaller":
            frames = frames[..., : SIZE // 2, : SIZE // 2]
    return frames


def record(settings: dict, task: dict) -> dict:
    quantized = settings["fp8_kv"] and settings["fault"] != "swallowed cache"
    v_format = "e4m3" if quantized else None
    numbers = range(task["context"], task["frames"])
    ms = settings["ms"]
    parts = {"attention_step1_ms": 0.2 * ms, "attention_step2_ms": 0.2 * ms, "mlp_step1_ms": 0.1 * ms}
    frame = {"total_ms": ms, "pipeline_ms": 0.9 * ms, "draw_ms": 0.1 * ms} | parts | {"decoder_ms": 0.1 * ms}
    frames = [{"frame": number, **frame, "total_ms": ms * (1 + 0.001 * (number % 3))} for number in numbers]
    converted = settings["mxfp_enable"] and settings["fault"] != "swallowed"
    layer = {"name": "blocks.0.mlp.fc1", "sqnr": 28.0}
    audit = {"format": "mxfp8", "kernel": "emulated", "layers": [layer], "categories": {"mlp": 1}}
    side = {"at_limit": 1, "clamped": 0, "nan": 0, "inf": 0}
    scale = {"min": 0.5, "mean": 1.0, "max": 2.0}
    resolved = {"k_formats": [None], "v_formats": [v_format], "k_scale": "none", "v_scale": "none", "windows": [64]}
    resolved |= {"backend": "reference", "compiled": settings["compile"], "notices": []}
    return {
        "requested": {"settings": settings},
        "resolved": resolved | {"mx_kernel": "emulated" if settings["mxfp_enable"] else None},
        "transform": audit if converted else None,
        "frames": frames,
        "cold_frames": [task["context"]],
        "summary": {"frames": len(frames) - 1, "fps_total": 1e3 / ms, "fps_pipeline": 1e3 / ms, "mean_ms": frame},
        "memory": {
            "window_bytes": 3000 if quantized else 4000,
            "bf16_bytes": 4000,
            "total_bytes": 5000,
            "by_format": {"bf16": 2000, "e4m3": 1000} if quantized else {"bf16": 4000},
            "allocated": None,
            "reserved": None,
            "peak_allocated": None,
        },
        "kv": [{"dequantised_bytes": 8, "k": side | {"scale": None}, "v": side | {"scale": scale}}],
    }


def write(path: Path, frames: np.ndarray) -> None:
    save_file({"frames": np.ascontiguousarray(frames, np.float32), "range": np.array(RANGE, np.float32)}, path)


if __name__ == "__main__":
    main()
