"""What each profile answers, from the rows of an accuracy or a serving result: cells, failures and tables."""

from collections.abc import Sequence

from bench.accuracy.gate_words import FIGURES, PATHS, gate_words, sink_words
from bench.accuracy.result import AccuracyRow
from bench.accuracy.verdicts import AccuracyRecord, Figure, Gate, GreedyMatch
from bench.report import markdown as md
from bench.report.numbers import number
from vllm_launch.resolved import Resolved, canonical_kv_dtype

NO_RECORD = "no record"
SIXTEEN_BIT = ("auto", "bfloat16", "float16")  # --kv-cache-dtype of a profile that can be a reference
NOTE = (
    "Log-probabilities of given tokens against the reference profile's: decode token by token through the KV cache,"
    " prefill all at once; in brackets 95% intervals over whole texts, then the gate. The reference's own rows, the"
    " same server asked twice, are the noise."
)
GREEDY_NOTE = (
    "Equal greedy answers cannot judge a cache format alone: with large margins a coarser cache passes too, with small"
    " ones a match is luck."
)


def base_of(rows: Sequence[AccuracyRow]) -> AccuracyRow:
    """The row that ratios are to: the reference of the answers, else the first with a 16-bit cache, else the first."""
    names = [match.reference for row in rows for match in row.greedy]
    names += [row.accuracy.reference for row in rows if row.accuracy]
    names += [row.profile for row in rows if row.requested.kv_cache_dtype in SIXTEEN_BIT]
    return next((row for row in rows if row.profile == next(iter(names), None)), rows[0])


def outcome(row: AccuracyRow) -> str | None:
    """pass, FAILED, not judged or reference; None without an accuracy record."""
    record = row.accuracy
    if not (row.greedy or record):
        return None
    if not all(match.passed for match in row.greedy) or (record and record.passed is False):
        return "FAILED"
    if record and record.reference == row.profile:
        return "reference"
    return "not judged" if record and record.passed is None else "pass"


def answers(row: AccuracyRow) -> str | None:
    """The accuracy record as plain text, None without one.

    Such as `pass: greedy 3 x 32/32, gates 21/21, mean |Δ log p| 0.111`.
    """
    if outcome(row) is None:
        return None
    greedy = [f"{match.matched}/{match.tokens}" for match in row.greedy]
    counts = f"{len(greedy)} x {greedy[0]}" if len(greedy) > 1 and len(set(greedy)) == 1 else ", ".join(greedy)
    parts = [f"greedy {counts}"] if greedy else []
    if record := row.accuracy:
        gates = [gate.passed for gate in record.gates if gate.passed is not None]
        parts += [f"gates {sum(gates)}/{len(gates)}"] if gates else []
        parts += ["sinks FAILED"] if record.sinks and record.sinks.status == "FAILED" else []
        parts.append(mean_text(record))
        parts += [f"judged after the run, {record.judged_at:%Y-%m-%d}"] if record.judged_at else []
    return f"{outcome(row)}: {', '.join(parts)}"


def mean_text(record: AccuracyRecord) -> str:
    return f"mean |Δ log p| {record.decode.mean_abs_delta.value:.3f}"


def answers_cell(row: AccuracyRow) -> str:
    return md.verdict(answers(row) or NO_RECORD)


def failed(rows: Sequence[AccuracyRow]) -> list[str]:
    """A block that lists every failed step, greedy answer, gate and sink check; none without failures."""
    lines = []
    for row in rows:
        name, record = md.text(row.profile), row.accuracy
        lines += [f"**{name} failed in step {md.text(each.step)}:** {md.text(each.message)}" for each in row.failures]
        lines += [
            f"**{name}**, greedy after {md.code(match.prompt)}: {match_text(match)}"
            for match in row.greedy
            if not match.passed
        ]
        if record and record.passed is False:
            lines += [f"**{name}**, {md.text(gate_words(gate))}" for gate in record.failed_gates]
            if record.sinks and record.sinks.status == "FAILED":
                lines.append(f"**{name}**, sinks: {md.text(sink_words(record.sinks))}")
            if record.reference == row.profile:
                lines.append(f"**{name}** is the reference and fails its own gates: distances from it mean nothing")
    return [f"Failed:\n\n{md.bullets(lines)}"] if lines else []


def match_text(match: GreedyMatch) -> str:
    counts = f"{match.matched} of {match.tokens} tokens equal, {match.distinct} distinct"
    return f"{counts}, smallest margin {number(match.margin)} nats"


def missing(row: AccuracyRow, measurements: list[str]) -> list[str]:
    """What a profile lacks, in at most one line. measurements: what is missing besides answers and settings."""
    parts = [*measurements, *(["resolved settings"] if row.resolved is None else [])]
    parts += ["accuracy record"] if answers(row) is None else []
    return [f"{row.profile}: {', '.join(parts)}"] if parts else []


def capacity_cell(row: AccuracyRow, base: AccuracyRow) -> str:
    if row.resolved is None:
        return "not known"
    ratio = capacity_ratio(row, base)
    return f"{row.resolved.kv_capacity_tokens:,}{f' ({ratio:.2f}x)' if ratio else ''}"


def capacity_ratio(row: AccuracyRow, base: AccuracyRow) -> float | None:
    """The KV capacity over the base's; None for the base itself, and where it is not known."""
    if row is base or row.resolved is None or base.resolved is None:
        return None
    return row.resolved.kv_capacity_tokens / base.resolved.kv_capacity_tokens


def details(rows: Sequence[AccuracyRow]) -> list[str]:
    """Every figure beside its gate, the sink checks and the greedy answers."""
    blocks = ["## Accuracy"]
    if scored := [row for row in rows if row.accuracy]:
        lines = [line for row in scored for line in _figure_lines(row.profile, row.accuracy)]
        blocks += [md.table(["profile", "context", "", "tokens in texts", *FIGURES.values()], lines), NOTE]
        checks = [(row.profile, row.accuracy.sinks) for row in scored]
        sinks = [f"{md.text(name)}: {md.text(sink_words(check) if check else NO_RECORD)}" for name, check in checks]
        blocks.append(f"Sink check:\n\n{md.bullets(sinks)}")
    blocks += ["## Greedy answers", GREEDY_NOTE]
    for row in rows:
        for match in row.greedy:
            texts = [(match.reference, match.reference_text), (row.profile, match.text)]
            outcome = md.verdict("pass" if match.passed else "FAILED")
            blocks.append(f"{outcome} after {md.code(match.prompt)}: {match_text(match)}")
            blocks.append(md.bullets([f"{md.text(name)}: {md.code(text)}" for name, text in texts]))
    return blocks


def _figure_lines(profile: str, record: AccuracyRecord) -> list[list[str]]:
    """A row per context and path: each figure with its interval and its gate."""
    gates = {(gate.context, gate.path, gate.figure): gate for gate in record.gates}
    parts = [(None, path, getattr(record, path)) for path in PATHS]
    parts += [
        (entry.context, path, getattr(entry, path)) for entry in record.contexts for path in ("decode", "prefill")
    ]
    lines = []
    for context, path, agreement in parts:
        if agreement:
            cells = [_figure(getattr(agreement, name), name, gates.get((context, path, name))) for name in FIGURES]
            where = f"{context:,}" if context else "all"
            lines.append([md.text(profile), where, PATHS[path], f"{agreement.tokens:,} in {agreement.texts}", *cells])
    return lines


def _figure(figure: Figure, name: str, gate: Gate | None) -> str:
    digits = {"top1": ".2%", "kl": ".2g"}.get(name, ".3f")

    def write(value: float) -> str:  # a broken server's perplexity ratio can have 300 digits
        return f"{value:{digits}}" if value < 1e6 else f"{value:.1e}"

    interval = f" ({write(figure.low)} to {write(figure.high)})" if figure.low is not None else ""
    if gate is None or gate.bound is None:
        return f"{write(figure.value)}{interval}"
    sense = {"top1": "≥", "perplexity_ratio": "within a factor of"}.get(name, "≤")
    bound = f"{gate.bound:.1%}" if name == "top1" else f"{gate.bound:g}"
    text = f"{write(figure.value)}{interval}, {sense} {bound}"
    return text if gate.passed else f"**FAILED: {text}**"


def settings(rows: Sequence[AccuracyRow]) -> list[str]:
    """What was requested of vLLM and what it really uses, profile by profile."""
    lines = []
    for row in rows:
        requested, resolved = row.requested, row.resolved
        backends, dtype = ", ".join(requested.attention_backends), requested.kv_cache_dtype
        if resolved:
            resolved_texts = [", ".join(resolved.attention_backends), kv_dtype(resolved), resolved.cuda_graphs]
        else:
            resolved_texts = ["not read back"] * 3
        lines.append([md.text(cell) for cell in (row.profile, row.description, backends, dtype, *resolved_texts)])
    headers = ["profile", "", "attention, requested", "KV cache, requested"]
    headers += ["attention, resolved", "KV cache, resolved", "CUDA graphs"]
    return ["## Settings", md.table(headers, lines)]


def kv_dtype(resolved: Resolved) -> str:
    dtype = canonical_kv_dtype(resolved.kv_cache_dtype, resolved.model_dtype)
    dtype += ", widened for a kernel without FP8" if resolved.cpu_attention == "widened" else ""
    skipped = ", ".join(resolved.kv_skip_layers)
    return f"{dtype}; {resolved.model_dtype} in layers {skipped}" if skipped else dtype
