"""A made-up result of kind `static-cache` for tests: no figure in it was measured."""

from bench.static_cache.result import StaticCacheResult, StaticCacheRow
from bench.static_cache.shapes import (
    BF16,
    FRAME_POINTS,
    FRAME_STORAGES,
    POINTS,
    STORAGES,
    attention_cases,
    window_bytes,
)
from kernels_tests.bench.samples import a_result

CEILING = 4.4e12


def a_row(part, design, backend, storage, point, us=100.0, spread=0.01, **changes) -> StaticCacheRow:
    figures = {"samples_us": [us * (1 - spread), us, us * (1 + spread)], "time_us": us, "rel_l2": 1.7e-3}
    fields = {
        "part": part,
        "design": design,
        "backend": backend,
        "storage": storage,
        "frame_tokens": point.frame_tokens,
        "window": point.window,
        "cache_bytes": window_bytes(STORAGES[storage], point.window),
        "predicted_us": us / 2,
    }
    return StaticCacheRow(**fields | figures | changes)


def a_failed_row(part, design, backend, storage, point) -> StaticCacheRow:
    nothing = {"samples_us": [], "time_us": None, "rel_l2": None}
    return a_row(part, design, backend, storage, point, **nothing, error="RuntimeError: no | such dtype")


def rows() -> list[StaticCacheRow]:
    """Fused attention takes 60 us where BF16 takes 100, a frame of the ring 200 where the rolled one takes 1000."""
    attention = [a_row("attention", "ring", "flex", BF16, point) for point in POINTS]
    attention += [
        a_row("attention", "ring", "triton", name, point, us=60.0, peak_bytes=1 << 20)
        for point in POINTS
        for backend, name in attention_cases(point)
        if backend == "triton"
    ]
    for point in FRAME_POINTS:
        for name in FRAME_STORAGES:
            attention.append(a_row("frame", "rolled", "flex", name, point, us=1000.0))
            attention.append(a_row("frame", "rolled", "sdpa", name, point, us=1100.0))
            attention.append(a_row("frame", "ring", "triton", name, point, us=200.0))
    return attention


def a_static_cache_result(results: list[StaticCacheRow] | None = None) -> StaticCacheResult:
    return StaticCacheResult(
        id="static-cache-sample",
        provenance=a_result().provenance,
        read_ceiling_bytes_per_s=CEILING,
        rows=rows() if results is None else results,
    )
