"""Gates in words: what failed, by how much."""

from collections.abc import Sequence

from bench.accuracy.result import AccuracyRow
from bench.accuracy.verdicts import AccuracyRecord, Gate, SinkCheck
from flashinfer_patches.errors import Problem

PATHS = {"decode": "decode", "prefill": "prefill", "paths": "decode against its own prefill"}
FIGURES = {
    "mean_abs_delta": "mean |Δ log p|",
    "p99_abs_delta": "p99 |Δ log p|",
    "kl": "KL",
    "top1": "top-1 agreement",
    "perplexity_ratio": "perplexity ratio",
}


def check_gates(rows: Sequence[AccuracyRow]) -> None:
    """Raise Problem("gate") if any profile failed any gate; the first one is named."""
    failed = [f"{row.profile}: {line}" for row in rows for line in failed_gates(row)]
    if failed:
        raise Problem(
            "gate",
            f"{failed[0]} ({len(failed)} gate(s) failed)",
            "the report shows each failed gate; do not serve this profile before the reason is known",
        )


def failed_gates(row: AccuracyRow) -> list[str]:
    """What a profile failed, a line each; empty if nothing."""
    lines = [
        f"greedy match {match.matched} of {match.tokens} ({match.distinct} distinct) after {match.prompt!r}"
        for match in row.greedy
        if not match.passed
    ]
    return lines + (failures(row.accuracy) if row.accuracy else [])


def failures(record: AccuracyRecord) -> list[str]:
    """Each gate that failed in one line of plain text, and the sink check."""
    lines = [gate_words(gate) for gate in record.failed_gates]
    if record.sinks and record.sinks.status == "FAILED":
        lines.append(f"sinks: {sink_words(record.sinks)}")
    return lines


def gate_words(gate: Gate) -> str:
    """Path, context, figure, value and bound of a gate."""
    context = "all contexts" if gate.context is None else f"{gate.context:,} tokens of context"
    relation = {"top1": "at least", "perplexity_ratio": "within a factor of"}.get(gate.figure, "at most")
    bound = "not judged" if gate.bound is None else f"{relation} {gate.bound:.4g}"
    return f"{PATHS[gate.path]}, {context}: {FIGURES[gate.figure]} {gate.value:.4g}, {bound}"


def sink_words(sinks: SinkCheck) -> str:
    """The sink check in one line: mean |Δ log p| to transformers in FP32 with each kind of sinks."""
    if sinks.reason:
        return f"{sinks.status}: {sinks.reason}"
    distances = ", ".join(f"{name} {value:.3f}" for name, value in sinks.mean_abs_delta.items())
    bounds = [f"true at most {sinks.bound:g}"] if sinks.bound else []
    bounds += [f"others at least {sinks.factor:g} times that"] if sinks.factor else []
    return f"{sinks.status}: mean |Δ log p| to FP32 {distances} ({'; '.join(bounds) or 'not judged'})"
