"""A cell's row, from the frames and records that its process left."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import numpy as np

from bench.rollout import quality
from bench.rollout.gates import quality_verdict
from bench.rollout.intervals import drop, figure
from bench.rollout.process import MODES, Mode
from bench.rollout.quality import Frames
from bench.rollout.result import Memory, Numerics, Profiled, Quality, RolloutRow, Times, Transform

DIGITS = 4
RESOLVED = ("k_formats", "v_formats", "k_scale", "v_scale", "backend", "mx_kernel", "compiled", "notices", "windows")
OF_FRAME = ("total_ms", "pipeline_ms", "draw_ms")
COUNTS = ("at_limit", "clamped", "nan", "inf")


def row_of(
    cell: str,
    drop_db: float,
    folder: Path,
    truth: Frames,
    reference: Mapping[Mode, Quality] | None = None,
    alike: Mapping[Mode, Frames] | None = None,
) -> RolloutRow:
    """The row of a finished process. reference, alike: quality and frames of the reference, None for its own row.

    Raises ValueError for a rollout that is not what its settings say: no layer converted, nothing quantised, or frames
    equal to the reference's, and for frames that cannot be compared.
    """
    record, alone = (json.loads((folder / f"{name}.json").read_bytes()) for name in ("free-running", "speed"))
    settings = record["requested"]["settings"]
    check_transformed(record)
    frames = {mode: quality.load(folder / f"{mode}.safetensors") for mode in MODES}
    if alike and _is_quantized(settings) and all(np.array_equal(frames[x].pixels, alike[x].pixels) for x in MODES):
        raise ValueError("frames equal the reference's in every pixel: nothing was quantised")
    row = RolloutRow(
        cell=cell,
        settings=settings,
        drop_db=drop_db,
        resolved={name: record["resolved"][name] for name in RESOLVED},
        transform=_transform(record["transform"]),
        quality={
            mode: quality_of(frames[mode], truth, reference and reference[mode], alike and alike[mode])
            for mode in MODES
        },
        times=_times(alone),
        memory=Memory(**{name: alone["memory"][name] for name in Memory.model_fields}),
        numerics={side: _numerics([layer[side] for layer in record["kv"]]) for side in ("k", "v")},
        dequantised_bytes=sum(layer["dequantised_bytes"] for layer in record["kv"]),
        profile=_profile(folder / "profile.json"),
    )
    return row.model_copy(update={"verdict": quality_verdict(row)})


def check_transformed(record: dict) -> None:
    """Raise ValueError where a rollout's record contradicts its settings."""
    settings, transform = record["requested"]["settings"], record["transform"]
    if settings["mxfp_enable"] and not (transform and transform["layers"]):
        raise ValueError("mxfp_enable is set, and no linear layer was converted")
    formats = {*record["memory"]["by_format"]}
    if settings["fp8_kv"] and settings["kv_storage"] != "bf16" and formats <= {"bf16"}:
        raise ValueError("fp8_kv is set, and the cache is in BF16")


def quality_of(frames: Frames, truth: Frames, reference: Quality | None, alike: Frames | None) -> Quality:
    """Frames against the truth, and against the reference's frames `alike`, whose quality is `reference`."""
    values = quality.psnr(frames, truth)
    end = values[:, -max(1, values.shape[1] // 4) :]
    by_clip = _rounded(values.mean(1))
    compared = {}
    if reference and alike:
        compared = {
            "drop": drop(reference.psnr_by_clip, by_clip),
            "alike_psnr": figure(_rounded(quality.psnr(frames, alike).mean(1))),
            "alike_ssim": figure(_rounded(quality.ssim(frames, alike).mean(1))),
        }
    return Quality(
        psnr=figure(by_clip),
        ssim=figure(_rounded(quality.ssim(frames, truth).mean(1))),
        psnr_by_clip=by_clip,
        psnr_end_by_clip=_rounded(end.mean(1)),
        psnr_by_frame=_rounded(values.mean(0)),
        artefacts=quality.artefacts(frames, truth),
        **compared,
    )


def _rounded(values: np.ndarray) -> list[float]:
    return np.round(values, DIGITS).tolist()


def _is_quantized(settings: dict) -> bool:
    return settings["mxfp_enable"] or (settings["fp8_kv"] and settings["kv_storage"] != "bf16")


def _times(record: dict) -> Times | None:
    """None where every frame was cold."""
    summary, eager = record["summary"], record.get("part_frames")
    if not summary["frames"]:
        return None
    means = {name: summary["mean_ms"][name] for name in OF_FRAME}
    parts = {name: mean(frame.get(name, 0.0) for frame in eager) for name in eager[0]} if eager else summary["mean_ms"]
    cold = {*record["cold_frames"]}
    return Times(
        fps_total=summary["fps_total"],
        fps_pipeline=summary["fps_pipeline"],
        **means,
        frame_ms=[round(frame["total_ms"], DIGITS) for frame in record["frames"] if frame["frame"] not in cold],
        cold_frames=record["cold_frames"],
        parts_ms={name.removesuffix("_ms"): round(ms, DIGITS) for name, ms in parts.items() if name not in OF_FRAME},
        parts_total_ms=parts["total_ms"],
        eager_parts=bool(eager),
    )


def _transform(audit: dict | None) -> Transform | None:
    if audit is None:
        return None
    return Transform(
        format=audit["format"],
        kernel=audit["kernel"],
        layers=len(audit["layers"]),
        categories=audit["categories"],
        worst_sqnr=min((layer["sqnr"] for layer in audit["layers"] if layer["sqnr"] is not None), default=None),
    )


def _numerics(sides: Sequence[dict]) -> Numerics:
    scales = [side["scale"] for side in sides if side["scale"]]
    counts = {name: sum(side[name] for side in sides) for name in COUNTS}
    if not scales:
        return Numerics(**counts, scale=None)
    least, largest = min(scale["min"] for scale in scales), max(scale["max"] for scale in scales)
    return Numerics(**counts, scale=(least, sum(scale["mean"] for scale in scales) / len(scales), largest))


def _profile(path: Path) -> Profiled | None:
    return Profiled.model_validate_json(path.read_bytes()) if path.exists() else None
