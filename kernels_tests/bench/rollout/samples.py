"""Rows and results of kind `rollout` for tests: no figure in them was measured."""

from bench.rollout import gates
from bench.rollout.intervals import drop, figure
from bench.rollout.process import MODES
from bench.rollout.result import Memory, Numerics, Quality, Right, RolloutResult, RolloutRow, Times, Transform
from bench.rollout.sweep import Sweep
from kernels_tests.bench.samples import two_profiles

BF16_PSNR = [30.0, 31.0, 32.0, 33.0]  # of clips, dB
RIGHT = {"reference": BF16_PSNR, "shuffled controls": [29.0], "last frame": [26.0], "mean frame": [20.0]}
CELLS = {
    "bf16": {},
    "mx8": {"mxfp_enable": True},
    "v8": {"fp8_kv": True},
    "v4": {"fp8_kv": True, "kv_bits": 4},
}
GATES = {
    "a": {"cell": "mx8", "base": "bf16", "drop_db": 0.3, "part": "mx", "fps": {"cell": "bf16", "ratio": 0.97}},
    "v8": {"cell": "v8", "base": "bf16", "drop_db": 0.3, "part": "kv", "smaller_than": "bf16"},
}


def a_sweep(**changes) -> Sweep:
    fields = {
        "name": "small",
        "clips": 4,
        "frames": 8,
        "context": 3,
        "clip_seed": 7,
        "seed": 0,
        "reference": "bf16",
        "drop_db": 0.3,
        "judge": {"beats_db": 3.0, "loses_db": 1.0},
        "common": {"mxfp_enable": False, "fp8_kv": False},
        "cells": {name: {"settings": settings} for name, settings in CELLS.items()},
        "gates": GATES,
    }
    return Sweep.model_validate(fields | changes)


def a_row(cell: str, drops=(0.0, 0.0, 0.0, 0.0), ms=10.0, kernel=None, **changes) -> RolloutRow:
    """A row whose PSNR is by `drops` below BF16_PSNR, clip by clip, in both modes."""
    psnr = [before - less for before, less in zip(BF16_PSNR, drops, strict=False)]
    quality = Quality(
        psnr=figure(psnr),
        ssim=figure([0.9] * len(psnr)),
        psnr_by_clip=psnr,
        psnr_end_by_clip=changes.pop("end", psnr),
        psnr_by_frame=[31.0] * 5,
        drop=None if cell == "bf16" else drop(BF16_PSNR[: len(psnr)], psnr),
        alike_psnr=None if cell == "bf16" else figure([45.0] * len(psnr)),
        artefacts={"black": 0, "flat": 0, "frozen": 0} | changes.pop("artefacts", {}),
    )
    row = RolloutRow(
        cell=cell,
        settings=CELLS.get(cell, {}),
        drop_db=0.3,
        resolved={"mx_kernel": kernel, "compiled": cell != "eager", "k_formats": [None], "v_formats": [None]},
        transform=Transform(format="mxfp8", kernel=kernel, layers=4, categories={}, worst_sqnr=28.0)
        if kernel
        else None,
        quality=dict.fromkeys(MODES, quality),
        times=Times(
            fps_total=1e3 / ms,
            fps_pipeline=1.1e3 / ms,
            total_ms=ms,
            pipeline_ms=0.9 * ms,
            draw_ms=0.1 * ms,
            frame_ms=[ms * factor for factor in (0.999, 1.0, 1.0, 1.001)],
            cold_frames=[3],
            parts_ms={"attention_step1": 0.2 * ms, "attention_step2": 0.2 * ms, "decoder": 0.1 * ms},
            parts_total_ms=ms,
            eager_parts=False,
        ),
        memory=Memory(
            window_bytes=changes.pop("window_bytes", 3000 if cell.startswith("v") else 4000),
            bf16_bytes=4000,
            total_bytes=5000,
            by_format={"bf16": 4000},
            allocated=changes.pop("allocated", None),
            reserved=None,
            peak_allocated=None,
        ),
        numerics={"v": Numerics(at_limit=3, clamped=0, nan=0, inf=0, scale=(0.5, 1.0, 2.0))},
    )
    row = row.model_copy(update=changes)
    return row.model_copy(update={"verdict": gates.quality_verdict(row)})


def a_rollout_result(**changes) -> RolloutResult:
    sweep = a_sweep()
    rows = [a_row("bf16"), a_row("mx8", (0.1, 0.1, 0.12, 0.1), kernel="emulated"), a_row("v8", (0.2, 0.1, 0.2, 0.1))]
    by_cell = {row.cell: row for row in rows}
    v4 = RolloutRow(cell="v4", settings=CELLS["v4"], drop_db=0.3, error="not run: gate v8 undecided")
    right = Right(psnr={name: figure(values) for name, values in RIGHT.items()}, beats_db=5.0, loses_db=2.0)
    fields = {
        "id": "rollout-1",
        "provenance": two_profiles().provenance,
        "sweep": sweep,
        "device": "cpu",
        "checkpoint": None,
        "right": right,
        "rows": [*rows, v4],
        "gates": [gates.judge(name, gate, by_cell) for name, gate in sweep.gates.items()],
        "incidents": [],
    }
    return RolloutResult(**fields | changes)
