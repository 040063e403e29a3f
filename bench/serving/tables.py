"""What a serving result shows, and its tables. Law: a speed is shown only beside an accuracy record."""

from collections.abc import Sequence
from statistics import fmean, median

from bench.accuracy.tables import FIRST_HEADERS, first_cells, has_record
from bench.record import noise
from bench.report import markdown as md
from bench.report.numbers import number, ratio_cell, requests
from bench.servers.result import Start
from bench.serving import goodput
from bench.serving.goodput import Slo
from bench.serving.load import request_times
from bench.serving.load.counters import Counters
from bench.serving.load.rate import Attempt, Rate
from bench.serving.result import ServingRow
from bench.suite import GridPoint
from vllm_launch.resolved import Resolved, canonical_kv_dtype

RATE_FIELDS = ("decode_tok_s", "prefill_tok_s", "first_token_ms")  # fields of Rate, in the order of the table
NOT_SHOWN = "not shown: no accuracy record"
WIDENED = "not compared: its FP8 cache is widened for a kernel without FP8"
RATES_NOTE = (
    "Median (slowest to fastest sample); decode and prefill sum over the requests at once, first token is their mean."
)

LATENCY_NOTE = (
    "p50 / p95 / p99 by nearest rank, and the number of samples; per second: median of the repeats. Both are of repeats"
    " without a failed request. Waiting and KV cache used: the highest that the server reported."
)


def order(point: GridPoint | Rate) -> tuple[int, ...]:
    """The order of points in a table."""
    return point.concurrency, point.output, point.context, point.depth


def samples(rates: Sequence[Rate], field: str = "decode_tok_s") -> dict[GridPoint, list[float]]:
    """The samples of a field of Rate at each point, one a repeat: of first_token_ms the mean over its requests."""
    result = {}
    for rate in rates:
        values = getattr(rate, field)
        if field == "first_token_ms":
            values = [fmean(values[i : i + rate.concurrency]) for i in range(0, len(values), rate.concurrency)]
        result[rate.grid_point] = values
    return result


def shown_rates(row: ServingRow) -> list[Rate]:
    """The rates that may be shown: none without an accuracy record."""
    return row.rates if has_record(row) else []


def shown_points(row: ServingRow) -> list[Attempt]:
    """The points that may be shown, those without a rate last: none without an accuracy record."""
    return [*row.rates, *row.unrated] if has_record(row) else []


def ratios(row: ServingRow, base: ServingRow) -> dict[GridPoint, noise.Ratio]:
    """Decode rates over the base's at common points; none where a record is missing or a cache is widened."""
    if row is base or is_widened(row):
        return {}
    return noise.ratios(samples(shown_rates(row)), samples(shown_rates(base)))


def is_widened(row: ServingRow) -> bool:
    """Whether the decode rate is that of our widening on a CPU, which says nothing of an FP8 cache's."""
    return bool(row.resolved and row.resolved.cpu_attention == "widened")


def kv_cache(resolved: Resolved) -> str:
    """The resolved KV cache as plain text."""
    dtype = canonical_kv_dtype(resolved.kv_cache_dtype, resolved.model_dtype)
    dtype += ", widened for a kernel without FP8" if resolved.cpu_attention == "widened" else ""
    skipped = ", ".join(resolved.kv_skip_layers)
    return f"{dtype}; {resolved.model_dtype} in layers {skipped}" if skipped else dtype


def timed(row: ServingRow) -> list[Start]:
    """The starts whose times are shown: not those of servers that only gave log-probabilities.

    Nor a warm one where the cold one cached nothing: it found the same caches.
    """
    cached_nothing = any(start.cache == "cold" and start.cached_files == 0 for start in row.starts)
    return [start for start in row.starts if start.cache in (("cold",) if cached_nothing else ("cold", "warm"))]


def page_points(rows: Sequence[ServingRow]) -> list[GridPoint]:
    """The shortest and the longest measured context, at the fewest requests and the longest output."""
    points = sorted({rate.grid_point for row in rows for rate in row.rates}, key=order)
    fewest = min((each.concurrency for each in points), default=0)
    longest = max((each.output for each in points), default=0)
    alike = [each for each in points if (each.concurrency, each.output) == (fewest, longest)]
    return [alike[0], alike[-1]] if len(alike) > 1 else alike


def profile_table(rows: Sequence[ServingRow], base: ServingRow) -> list[str]:
    """A row per profile: answers, capacity, decode rates, starts; then the conditions of the rates."""
    points = page_points(rows)
    headers = [*FIRST_HEADERS, *(f"decode at {each.context:,} tokens" for each in points), "start, cold / warm, s"]
    lines = [
        [*first_cells(row, base), *(rate_cell(row, base, each) for each in points), _start_cell(row)] for row in rows
    ]
    conditions = [f"Decode: median, {requests(each.concurrency)}, {each.output} tokens out." for each in points[:1]]
    return [md.table(headers, lines), *conditions]


def rate_cell(row: ServingRow, base: ServingRow, where: GridPoint) -> str:
    """The median decode rate at a point, and its ratio to the base's."""
    if where not in samples(row.rates):
        return "not measured"
    if not has_record(row):
        return NOT_SHOWN
    rate, ratio = f"{number(median(samples(row.rates)[where]))} tokens/s", ratios(row, base).get(where)
    comparison = ratio_cell(ratio) if ratio else WIDENED if is_widened(row) else None
    return f"{rate}, {comparison}" if comparison else rate


def ratio_at(row: ServingRow, base: ServingRow, where: GridPoint) -> str:
    """The decode rate over the base's at a point; "" where they are not compared."""
    ratio = ratios(row, base).get(where)
    return ratio_cell(ratio) if ratio else ""


def _start_cell(row: ServingRow) -> str:
    if row.requested is None:
        return "not known"
    seconds = [[start.start_s for start in timed(row) if start.cache == cache] for cache in ("cold", "warm")]
    return " / ".join(number(median(values)) if values else "-" for values in seconds)


def rate_table(rows: Sequence[ServingRow], base: ServingRow) -> list[str]:
    """All rates that may be shown: medians, with the slowest and the fastest sample; no block without any."""
    headers = ["profile", "answers", "context", "depth", "prompt", "output", "requests", "samples", "decode, tokens/s"]
    headers += ["prefill, tokens/s", "first token, ms", f"decode over {base.profile}"]
    lines = []
    for row in rows:
        compared = ratios(row, base)
        for rate in sorted(shown_rates(row), key=order):
            sizes = (rate.context, rate.depth, rate.prompt, rate.output, rate.concurrency, len(rate.decode_tok_s))
            speeds = (_spread(*samples([rate], field).values()) for field in RATE_FIELDS)
            ratio = compared.get(rate.grid_point)
            cells = [*first_cells(row, base)[:2], *map("{:,}".format, sizes), *speeds]
            lines.append([*cells, ratio_cell(ratio) if ratio else "-"])
    return ["## Rates", md.table(headers, lines), RATES_NOTE] if lines else []


def latency_table(rows: Sequence[ServingRow], slo: Slo) -> list[str]:
    """Percentiles, rates and goodput of single requests at each point that may be shown; no block without any."""
    points = [(row, attempt) for row in rows for attempt in shown_points(row)]
    lines = [(row, _latency_cells(attempt, slo)) for row, attempt in points if attempt.total]
    table = [[md.text(row.profile), *cells.values()] for row, cells in lines]
    goodput_note = f" Goodput: requests within {goodput.as_text(slo)}; itl is the mean of a request." if slo else ""
    headers = ["profile", *(name for _, cells in lines[:1] for name in cells)]
    return ["## Latencies", md.table(headers, table), LATENCY_NOTE + goodput_note] if lines else []


def _latency_cells(attempt: Attempt, slo: Slo) -> dict[str, str]:
    """A point's cells by header."""
    repeats, counters = attempt.whole_repeats, attempt.counters or Counters()
    ttft, tpot, itl, e2e = map(_percentile_cell, request_times.latencies(repeats))
    met = goodput.goodput(attempt.repeats, attempt.total, slo)
    cells = {
        "context": f"{attempt.context:,}",
        "output": f"{attempt.output:,}",
        "requests at once": f"{attempt.concurrency:,}",
        "first token, ms": ttft,
        "per output token, ms": tpot,
        "between tokens, ms": itl,
        "whole request, ms": e2e,
        "requests/s": number(median(request_times.request_rates(repeats))) if repeats else "-",
        "output tokens/s": number(median(request_times.token_rates(repeats))) if repeats else "-",
        "failed": f"{attempt.failed} of {attempt.total}",
        "waiting": _known(counters.waiting, "{:,}"),
        "preemptions": _known(counters.preemptions, "{:,}"),
        "KV cache used": _known(counters.kv_cache_usage, "{:.0%}"),
    }
    return cells | ({"goodput, requests/s": f"{number(median(met.per_s))} ({met.share:.0%})"} if met else {})


def _known(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _percentile_cell(values: request_times.Percentiles | None) -> str:
    return f"{number(values.p50)} / {number(values.p95)} / {number(values.p99)} of {values.samples}" if values else "-"


def _spread(values: list[float]) -> str:
    return f"{number(median(values))} ({number(min(values))} to {number(max(values))})"
