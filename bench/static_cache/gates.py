"""What the measurements must show, and whether they do: ratios of times, memory of a step, bytes of a cache."""

from typing import Literal, NamedTuple

from bench.static_cache.result import StaticCacheResult, StaticCacheRow
from bench.static_cache.shapes import BF16, FRAME_POINTS, FRAME_STORAGES, INT8, POINTS, STORAGES, V_INT8, window_bytes

MIN_BF16_BYTES = 100e6  # of a layer's cache, from which the ratios are required
MIN_FRAME_RATIO = 3.0
MAX_PEAK_SHARE = 0.1  # of a layer's BF16 cache
RATIOS = {"K, V e4m3": 1.25, INT8: 1.25, "V e4m3": 1.1, V_INT8: 1.1}  # at frames where bytes bind
ARITHMETIC_TOKENS, ARITHMETIC_RATIO = 256, 0.97  # where arithmetic binds
BYTES = {V_INT8: 0.77, INT8: 0.53, "V mxfp8": 0.76, "K, V mxfp8": 0.52, "V mxfp4": 0.63}  # of BF16
BYTES_ROUNDING = 0.005

Verdict = Literal["passed", "FAILED", "undecided", "not run"]


class Gate(NamedTuple):
    name: str
    bound: str
    value: str
    verdict: Verdict


def gates(result: StaticCacheResult) -> list[Gate]:
    rows = {(row.part, row.design, row.backend, row.storage, row.point): row for row in result.rows if not row.error}
    judged = []
    for point in FRAME_POINTS:
        for name in FRAME_STORAGES:
            rolled = [rows[key] for key in rows if key[:2] == ("frame", "rolled") and key[3:] == (name, point)]
            fastest = min(rolled, key=lambda row: row.time_us, default=None)
            ring = rows.get(("frame", "ring", "triton", name, point))
            judged.append(_ratio(f"frame {point}, {name}, fastest rolled over ring", MIN_FRAME_RATIO, fastest, ring))
    for point in POINTS:
        if window_bytes(STORAGES[BF16], point.window) < MIN_BF16_BYTES:
            continue
        base = rows.get(("attention", "ring", "flex", BF16, point))
        for name, least in RATIOS.items():
            bound = ARITHMETIC_RATIO if point.frame_tokens >= ARITHMETIC_TOKENS else least
            fused = rows.get(("attention", "ring", "triton", name, point))
            judged.append(_ratio(f"attention {point}, {name}, BF16 flex over fused", bound, base, fused))
    return [*judged, _peak(list(rows.values())), *map(_bytes, BYTES)]


def _ratio(name: str, bound: float, base: StaticCacheRow | None, row: StaticCacheRow | None) -> Gate:
    if base is None or row is None:
        return Gate(name, f">= {bound:g}x", "-", "not run")
    low = min(base.samples_us) / max(row.samples_us)
    high = max(base.samples_us) / min(row.samples_us)
    verdict = "passed" if low >= bound else "FAILED" if high < bound else "undecided"
    predicted = base.predicted_us / row.predicted_us
    return Gate(name, f">= {bound:g}x", f"{base.time_us / row.time_us:.2f}x, predicted {predicted:.2f}x", verdict)


def _peak(rows: list[StaticCacheRow]) -> Gate:
    shares = [row.peak_bytes / window_bytes(STORAGES[BF16], row.window) for row in rows if row.peak_bytes is not None]
    bound = f"<= {MAX_PEAK_SHARE:g} of a layer's BF16 cache"
    name = "memory of a step above the resident cache"
    if not shares:
        return Gate(name, bound, "-", "not run")
    return Gate(name, bound, f"{max(shares):.3f}", "passed" if max(shares) <= MAX_PEAK_SHARE else "FAILED")


def _bytes(name: str) -> Gate:
    ratio = window_bytes(STORAGES[name], 1) / window_bytes(STORAGES[BF16], 1)
    passed = abs(ratio - BYTES[name]) <= BYTES_ROUNDING
    return Gate(f"cache bytes, {name}", f"{BYTES[name]}x of BF16", f"{ratio:.3f}x", "passed" if passed else "FAILED")
