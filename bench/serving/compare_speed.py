"""Speeds and latencies of two profiles at their common points, for `bench compare`: as plain data and as text."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median

from bench.record import noise
from bench.report.numbers import aligned, number, span, times, with_noise
from bench.serving import goodput, tables
from bench.serving.goodput import Slo
from bench.serving.load import request_times
from bench.serving.load.rate import Rate
from bench.suite import GridPoint

# Field of Rate -> what it is, and whether more is faster.
SPEEDS = {
    "decode_tok_s": ("Decode rate, tokens/s", True),
    "prefill_tok_s": ("Prefill rate, tokens/s", True),
    "first_token_ms": ("First token, ms", False),
}
P95 = {"ttft_p95_ms": "first token", "itl_p95_ms": "between tokens"}


def figures(a: float | None, b: float | None) -> dict:
    return {"a": a, "b": b, "ratio": b / a if a and b else None}


def speed(a: Sequence[Rate], b: Sequence[Rate], field: str) -> dict:
    """One kind of speed at all common points, and one line over all of them."""
    of_a, of_b = tables.samples(a, field), tables.samples(b, field)
    ratios, more_is_faster = noise.ratios(of_b, of_a), SPEEDS[field][1]
    points = [
        _sizes(point)
        | {"a": median(of_a[point]), "b": median(of_b[point]), "ratio": ratio.value}
        | {"noise": None if math.isinf(ratio.noise) else ratio.noise, "verdict": noise.verdict(ratio, more_is_faster)}
        for point, ratio in sorted(ratios.items(), key=lambda item: tables.order(item[0]))
    ]
    message = f"B {compared(list(ratios.values()), 'A', more_is_faster)}" if points else "no point in common"
    return {"message": message, "points": points}


def compared(ratios: Sequence[noise.Ratio], base: str, more_is_faster: bool = True) -> str:
    """The lowest and the highest ratio to `base`, and how many points have which verdict."""
    counts = Counter(noise.verdict(ratio, more_is_faster) for ratio in ratios)
    points = "1 point" if len(ratios) == 1 else f"{len(ratios)} points"
    if len(counts) == 1:
        outcome = next(iter(counts))
    else:
        outcome = ", ".join(f"{counts[name]} {name}" for name in noise.VERDICTS if counts[name])
    return f"{span(ratios, with_noise)} of {base} ({points}: {outcome})"


def latencies(a: Sequence[Rate], b: Sequence[Rate], slo_a: Slo, slo_b: Slo) -> dict:
    """p95 latencies, and goodput where both have the same limits, at the common points with times of requests.

    `slo` in the result is None where goodput is not compared.
    """
    slo = slo_a if slo_a == slo_b else {}
    of_a, of_b = ({rate.grid_point: rate for rate in rates if rate.requests} for rates in (a, b))
    points = []
    for point in sorted(of_a.keys() & of_b.keys(), key=tables.order):
        pair = of_a[point], of_b[point]
        percentiles = [request_times.latencies(rate.whole_repeats) for rate in pair]
        line = _sizes(point)
        line["ttft_p95_ms"] = figures(*(each.ttft.p95 if each.ttft else None for each in percentiles))
        line["itl_p95_ms"] = figures(*(each.itl.p95 if each.itl else None for each in percentiles))
        if slo:
            line["goodput_share"] = figures(*(goodput.goodput(rate.repeats, rate.total, slo).share for rate in pair))
        points.append(line)
    return {"slo": goodput.as_text(slo) or None, "points": points}


def _sizes(point: GridPoint) -> dict:
    return {"context": point.context, **point._asdict()}


def speed_text(field: str, comparison: dict, mark: str) -> str:
    """A speed() for the terminal. mark: header of the ratios."""
    table = f"\n{_speed_table(comparison['points'], mark)}" if comparison["points"] else ""
    return f"{SPEEDS[field][0]}: {comparison['message']}{table}"


def _speed_table(points: list[dict], mark: str) -> str:
    lines = [["context", "output", "requests", "A", "B", mark, ""]]
    for point in points:
        ratio = noise.Ratio(point["ratio"], math.inf if point["noise"] is None else point["noise"])
        cells = [f"{point['context']:,}", str(point["output"]), str(point["concurrency"])]
        lines.append([*cells, number(point["a"]), number(point["b"]), with_noise(ratio), point["verdict"]])
    return aligned(lines, left=6)


def latency_text(comparison: dict, mark: str) -> list[str]:
    """A latencies() for the terminal, none without points. mark: header of the ratios."""
    points, slo = comparison.get("points"), comparison.get("slo")
    if not points:
        return []
    lines = [["context", "output", "requests", *(cell for name in P95.values() for cell in (f"{name} A", "B", mark))]]
    lines[0] += ["goodput A", "B"] if slo else []
    for point in points:
        cells = [f"{point['context']:,}", str(point["output"]), str(point["concurrency"])]
        for a, b, ratio in (point[name].values() for name in P95):
            cells += [*("-" if value is None else number(value) for value in (a, b)), times(ratio) if ratio else "-"]
        cells += [f"{point['goodput_share'][side]:.0%}" for side in ("a", "b")] if slo else []
        lines.append(cells)
    title = "Latency, p95 of all requests, ms; its noise is not known"
    title += f"; goodput: share of requests within {slo}" if slo else ""
    return [f"{title}\n{aligned(lines)}"]
