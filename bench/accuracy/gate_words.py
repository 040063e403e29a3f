"""Gates in words: what failed, by how much."""

from collections.abc import Sequence

from bench.accuracy.result import AccuracyRow
from bench.accuracy.verdicts import AccuracyRecord, Gate, Ratio, RelativeGate, SinkCheck
from flashinfer_patches.errors import Problem
from vllm_launch.terminal import console

PATHS = {"decode": "decode", "prefill": "prefill", "paths": "decode against its own prefill"}
FIGURES = {
    "mean_abs_delta": "mean |Δ log p|",
    "p99_abs_delta": "p99 |Δ log p|",
    "kl": "KL",
    "top1": "top-1 agreement",
    "perplexity_ratio": "perplexity ratio",
}


def check_gates(rows: Sequence[AccuracyRow]) -> None:
    """Print the relative gates; raise Problem("gate") if any profile failed any gate, which names the first one."""
    for row in rows:
        if row.accuracy and row.accuracy.relative:
            line = f"{row.profile}: {relative_words(row.accuracy.relative)}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
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
    """Each gate that failed in one line of plain text, the sink check and the relative gate."""
    lines = [gate_words(gate) for gate in record.failed_gates]
    if record.sinks and record.sinks.status == "FAILED":
        lines.append(f"sinks: {sink_words(record.sinks)}")
    if record.relative and record.relative.status == "FAILED":
        lines.append(relative_words(record.relative))
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


def relative_words(gate: RelativeGate) -> str:
    """The relative gate in one line, such as `decode over fp8, passed: KL 0.08x, at most 0.12x (noise 0.01x)`."""
    ratios = (
        f"{FIGURES[each.figure]} {times(each, each.value)}, at most {each.bound:g}x (noise {times(each, each.noise)}"
        + (f", undecided from {each.max_noise:g}x)" if each.status == "undecided" else ")")
        for each in gate.ratios
    )
    return f"decode over {gate.profile}, {gate.status}: {gate.reason or '; '.join(ratios)}"


def times(ratio: Ratio, value: float) -> str:
    """A figure over that of the other profile, such as `0.08x`; `-` over nothing."""
    return f"{value / ratio.yardstick:.2g}x" if ratio.yardstick > 0 else "-"
