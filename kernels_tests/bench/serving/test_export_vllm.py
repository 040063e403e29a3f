"""vLLM's JSON lines against vLLM itself: the names of its benchmark, its figures for the same requests, its reader."""

import inspect
import json
import random

import pytest
from vllm.benchmarks import serve
from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput
from vllm.benchmarks.sweep import plot_pareto

from bench.serving import export
from bench.serving.load import request_times
from bench.serving.load.failures import counted
from bench.serving.load.request_times import RequestTimes
from kernels_tests.bench.samples import a_rate, a_request, a_result, a_row

SLO = {"ttft": 150.0, "itl": 12.0, "e2e": 900.0}
GOODPUT = {"ttft": 150.0, "tpot": 12.0, "e2el": 900.0}
METADATA = {
    "machine",
    "decoder",
    "kv_cache",
    "accuracy",
    "accuracy_record",
    "not_measured",
    "slo",
    "depth",
    "prompt",
    "output",
}  # as by vLLM's --metadata


def requests() -> list[RequestTimes]:
    """Three repeats of 16 requests at once, of various lengths; in the second one fails, in each one has one token."""
    chance, times = random.Random(1), []
    for run in (1, 2, 3):
        for index in range(16):
            tokens = 1 if index == 3 else chance.randint(2, 64)
            gaps = [chance.uniform(5, 20) for _ in range(tokens - 1)]
            ttft = chance.uniform(50, 200)
            error = "HTTP 429" if (run, index) == (2, 7) else None
            start = chance.uniform(0, 20)
            sizes = {"ttft_ms": ttft, "e2e_ms": ttft + sum(gaps), "itl_ms": gaps, "tokens": tokens}
            times.append(a_request(run=run, start_ms=start, error=error, **sizes))
    return times


REQUESTS = requests()
RATE = a_rate(1024, 16).model_copy(update={"requests": REQUESTS, "failures": counted(REQUESTS)})
RESULT = a_result(a_row(rates=[RATE]), a_row("fp8", "fp8", rates=[RATE])).model_copy(update={"slo": SLO})


@pytest.fixture(scope="module")
def objects() -> list[dict]:
    text, left_out = export.export(RESULT, as_vllm=True)
    assert left_out == []
    return [json.loads(line) for line in text.splitlines()]


def vllm_metrics() -> serve.BenchmarkMetrics:
    """vLLM's own metrics of the requests of whole repeats, in one run as long as these together."""
    outputs = [
        RequestFuncOutput(
            success=request.error is None,
            latency=request.e2e_ms / 1000,
            output_tokens=request.tokens,
            ttft=request.ttft_ms / 1000,
            itl=[gap / 1000 for gap in request.itl_ms],
            prompt_len=RATE.depth + RATE.prompt,
            error=request.error or "",
        )
        for repeat in RATE.whole_repeats
        for request in repeat
    ]
    duration = sum(map(request_times.wall_s, RATE.whole_repeats))
    metrics, _ = serve.calculate_metrics([], outputs, duration, None, [50.0, 95.0, 99.0], GOODPUT)
    return metrics


def test_figures_equal_those_of_vllms_calculate_metrics(objects):
    metrics = vllm_metrics()
    expected = {
        "completed": metrics.completed,
        "failed": 1,
        "total_input_tokens": metrics.total_input,
        "total_output_tokens": metrics.total_output,
        "request_throughput": metrics.request_throughput,
        "request_goodput": metrics.request_goodput,
        "output_throughput": metrics.output_throughput,
        "total_token_throughput": metrics.total_token_throughput,
    }
    for name in export.VLLM_LATENCIES:
        expected |= {f"{each}_{name}_ms": getattr(metrics, f"{each}_{name}_ms") for each in ("mean", "median", "std")}
        expected |= {f"p{percent:g}_{name}_ms": value for percent, value in getattr(metrics, f"percentiles_{name}_ms")}
    assert metrics.completed == 32
    assert 0 < metrics.request_goodput < metrics.request_throughput
    for values in objects:
        assert {name: values[name] for name in expected} == pytest.approx(expected)


def test_names_are_those_of_vllms_benchmark(objects):
    source = inspect.getsource(serve)
    statistics = [name for name in objects[0] if name.endswith("_ms")]
    names = {*objects[0]} - METADATA - {*statistics}
    assert [name for name in names if f'"{name}"' not in source] == []
    assert len(statistics) == 6 * len(export.VLLM_LATENCIES)


def test_vllms_pareto_plot_reads_the_objects(objects):
    records, skipped = plot_pareto._prepare_records(objects, user_count_var="max_concurrency", gpu_count_var=None)
    assert skipped == 0 and [record["user_count_estimate"] for record in records] == [16, 16]
    assert [record["tokens_per_user"] for record in records] == [each["output_throughput"] / 16 for each in objects]
