"""A serving result in the formats of other tools: CSV, and the JSON lines of `vllm bench serve --append-result`.

Law: no speed without an accuracy record: profiles without one have no line.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from statistics import median

import click
import numpy as np

from bench.accuracy.tables import answers, base_of, has_record, outcome
from bench.serving import goodput
from bench.serving.load import request_times
from bench.serving.load.rate import Attempt, Rate
from bench.serving.load.request_times import RequestTimes
from bench.serving.result import ServingResult, ServingRow
from bench.serving.tables import RATE_FIELDS, kv_cache, samples, shown_points

PERCENTS = (50, 95, 99)
LATENCY_COLUMNS = [f"{name}_p{percent}_ms" for name in request_times.Latencies._fields for percent in PERCENTS]
CSV_COLUMNS = [
    *(
        "result",
        "created",
        "model",
        "machine",
        "profile",
        "decoder",
        "kv_cache",
        "accuracy",
        "accuracy_record",
        "not_measured",
    ),
    *("depth", "prompt", "output", "context", "concurrency", "repeats"),
    *RATE_FIELDS,
    *("requests", "failed", "requests_per_s", "output_tok_s", *LATENCY_COLUMNS),
    *("slo", "goodput_share", "goodput_per_s"),
]
# vLLM's name of a latency -> its samples in ms.
VLLM_LATENCIES: dict[str, Callable[[Sequence[RequestTimes]], list[float]]] = {
    "ttft": lambda requests: [request.ttft_ms for request in requests],
    "tpot": lambda requests: [request.tpot_ms for request in requests if request.tpot_ms is not None],
    "itl": lambda requests: [gap for request in requests for gap in request.itl_ms],
    "e2el": lambda requests: [request.e2e_ms for request in requests],
}


def export(result: ServingResult, as_vllm: bool) -> tuple[str, list[str]]:
    """The text to export, CSV or vLLM's JSON lines, and a line for each profile left out.

    Raises click.UsageError for a result of another kind.
    """
    if result.kind != "serving":
        raise click.UsageError(f"a result of kind {result.kind}: only serving results are exported")
    left_out = [f"{row.profile}: left out: no accuracy record" for row in result.rows if not has_record(row)]
    points = [(row, attempt) for row in result.rows for attempt in shown_points(row)]
    if not as_vllm:
        return _csv([csv_line(result, row, attempt) for row, attempt in points]), left_out
    objects = [vllm_object(result, row, attempt) for row, attempt in points if attempt.total]
    untimed = dict.fromkeys(row.profile for row, attempt in points if not attempt.total)
    left_out += [f"{name}: points left out: no times of requests" for name in untimed]
    return "".join(f"{json.dumps(each)}\n" for each in objects), left_out


def _csv(lines: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _described(result: ServingResult, row: ServingRow, attempt: Attempt) -> dict:
    """Columns of both formats beside the speed. not_measured: left out by --quick, or not offered by the server."""
    base = base_of(result.rows)
    return {
        "machine": result.provenance.machine.name if row.requested else None,  # a server elsewhere
        "decoder": row.decoder,
        "kv_cache": kv_cache(row.resolved) if row.resolved else None,
        "accuracy": outcome(row, base),
        "accuracy_record": answers(row, base),
        "not_measured": ", ".join([*row.left_out, *row.unavailable]) or None,
        "slo": goodput.as_text(result.slo) or None,
        "depth": attempt.depth,
        "prompt": attempt.prompt,
        "output": attempt.output,
    }


def csv_line(result: ServingResult, row: ServingRow, attempt: Attempt) -> dict:
    """A profile at a point of the grid: medians of the repeats, percentiles as in the report, sizes in tokens.

    A point without a whole repeat has the counts of its requests alone.
    """
    line = {"result": result.id, "created": result.provenance.created.isoformat(), "model": result.model.name}
    line |= {"profile": row.profile} | _described(result, row, attempt)
    line |= {"context": attempt.context, "concurrency": attempt.concurrency, "repeats": 0}
    if isinstance(attempt, Rate):
        line["repeats"] = len(attempt.decode_tok_s)
        line |= {field: median(*samples([attempt], field).values()) for field in RATE_FIELDS}
    if attempt.total:
        line |= {"requests": attempt.total, "failed": attempt.failed}
    if repeats := attempt.whole_repeats:
        line["requests_per_s"] = median(request_times.request_rates(repeats))
        line["output_tok_s"] = median(request_times.token_rates(repeats))
    for name, values in request_times.latencies(repeats)._asdict().items():
        line |= {f"{name}_p{percent}_ms": getattr(values, f"p{percent}") for percent in PERCENTS if values}
    if met := goodput.goodput(attempt.repeats, attempt.total, result.slo):
        line |= {"goodput_share": met.share, "goodput_per_s": median(met.per_s)}
    return line


def vllm_object(result: ServingResult, row: ServingRow, attempt: Attempt) -> dict:
    """A profile at a point of the grid under vLLM's names, computed as vLLM does; the whole repeats make one run.

    Percentiles interpolate, unlike the report's. Input tokens are those of the grid, without the chat template.
    Without a whole repeat every figure is 0, as vLLM's are where no request succeeded.
    """
    completed = [request for repeat in attempt.whole_repeats for request in repeat]
    duration = sum(map(request_times.wall_s, attempt.whole_repeats))
    total_input = (attempt.depth + attempt.prompt) * len(completed)
    total_output = sum(request.tokens for request in completed)
    met = sum(goodput.meets(request, result.slo) for request in completed)

    def per_s(count: int) -> float:
        return count / duration if duration else 0.0

    values = {
        "date": f"{result.provenance.created:%Y%m%d-%H%M%S}",
        "backend": "openai-chat",
        "label": row.profile,
        "model_id": result.model.name,
        "num_prompts": attempt.total,
        **_described(result, row, attempt),  # as by vLLM's --metadata
        "request_rate": "inf",
        "max_concurrency": attempt.concurrency,
        "duration": duration,
        "completed": len(completed),
        "failed": attempt.failed,
        "total_input_tokens": total_input,
        "total_output_tokens": total_output,
        "request_throughput": per_s(len(completed)),
        "request_goodput": per_s(met) if result.slo else None,
        "output_throughput": per_s(total_output),
        "total_token_throughput": per_s(total_input + total_output),
    }
    for name, of_requests in VLLM_LATENCIES.items():
        values |= _vllm_statistics(name, of_requests(completed) or [0.0])
    return values


def _vllm_statistics(name: str, milliseconds: list[float]) -> dict[str, float]:
    statistics = {"mean": np.mean(milliseconds), "median": np.median(milliseconds), "std": np.std(milliseconds)}
    statistics |= {f"p{percent}": np.percentile(milliseconds, percent) for percent in PERCENTS}
    return {f"{statistic}_{name}_ms": float(value) for statistic, value in statistics.items()}
