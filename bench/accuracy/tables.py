"""What each profile answers, from the rows of an accuracy or a serving result: cells, failures and tables."""

from collections.abc import Sequence

from bench.accuracy.gate_words import FIGURES, PATHS, failed_gates, sink_words
from bench.accuracy.result import AccuracyRow
from bench.accuracy.verdicts import AccuracyRecord, Figure, Gate
from bench.report import markdown as md
from vllm_launch.resolved import canonical_kv_dtype

NO_RECORD = "no record"
REFERENCE_FAILED = "FAILED: the reference fails its own gates"
FIRST_HEADERS = ["profile", "answers", "KV capacity, tokens"]
SIXTEEN_BIT = ("auto", "bfloat16", "float16")  # --kv-cache-dtype of a profile that can be a reference
NOTE = (
    "Log-probabilities of given tokens against the reference profile's: decode token by token through the KV cache,"
    " prefill all at once; in brackets 95% intervals over whole texts, then the gate. The reference's own rows, the"
    " same server asked twice, are the noise."
)


def base_of(rows: Sequence[AccuracyRow]) -> AccuracyRow:
    """The row that ratios are to: the reference of the answers, else the first with a 16-bit cache, else the first."""
    names = [match.reference for row in rows for match in row.greedy]
    names += [row.accuracy.reference for row in rows if row.accuracy]
    names += [row.profile for row in rows if row.requested.kv_cache_dtype in SIXTEEN_BIT]
    return next((row for row in rows if row.profile == next(iter(names), None)), rows[0])


def has_record(row: AccuracyRow) -> bool:
    return bool(row.greedy or row.accuracy)


def is_failed_reference(row: AccuracyRow) -> bool:
    """Whether a row is the reference and fails its own gates: distances from it mean nothing."""
    return is_reference(row) and not _passed(row)


def is_reference(row: AccuracyRow) -> bool:
    """Whether a row's answers are compared with its own profile's."""
    records = [*row.greedy, *([row.accuracy] if row.accuracy else [])]
    return any(record.reference == row.profile for record in records)


def _passed(row: AccuracyRow) -> bool:
    """Whether no gate failed."""
    return all(match.passed for match in row.greedy) and not (row.accuracy and row.accuracy.passed is False)


def outcome(row: AccuracyRow, base: AccuracyRow) -> str | None:
    """pass, FAILED (all are against a failed reference), not judged or reference; None without an accuracy record."""
    record = row.accuracy
    if not has_record(row):
        return None
    if not _passed(row) or is_failed_reference(base):
        return "FAILED"
    if is_reference(row):
        return "reference"
    return "not judged" if record and record.passed is None else "pass"


def answers(row: AccuracyRow, base: AccuracyRow, brief: bool = False) -> str | None:
    """The accuracy record as plain text, None without one; brief: without counts beside log-probabilities.

    Such as `pass: greedy 3 x 32/32, gates 21/21, mean |Δ log p| 0.111`.
    """
    record = row.accuracy
    if not has_record(row):
        return None
    if row is not base and is_failed_reference(base):
        return REFERENCE_FAILED
    greedy = [f"{match.matched}/{match.tokens}" for match in row.greedy]
    counts = f"{len(greedy)} x {greedy[0]}" if len(greedy) > 1 and len(set(greedy)) == 1 else ", ".join(greedy)
    parts = [f"greedy {counts}"] if greedy else []
    if record:
        gates = [gate.passed for gate in record.gates if gate.passed is not None]
        parts = [] if brief else [*parts, *([f"gates {sum(gates)}/{len(gates)}"] if gates else [])]
        if record.sinks and record.sinks.status in ("FAILED", "not run"):
            parts.append(f"sinks {record.sinks.status}")
        parts.append(f"mean |Δ log p| {record.decode.mean_abs_delta.value:.3f}")
        if record.judged_at:
            parts.append(f"judged {'' if brief else 'after the run, '}{record.judged_at:%Y-%m-%d}")
    return f"{outcome(row, base)}{', ' if brief and record else ': '}{', '.join(parts)}"


def first_cells(row: AccuracyRow, base: AccuracyRow) -> list[str]:
    """A row's cells under FIRST_HEADERS."""
    return [md.text(row.profile), md.verdict(answers(row, base) or NO_RECORD), md.text(capacity(row, base))]


def capacity(row: AccuracyRow, base: AccuracyRow, unit: str = "") -> str:
    """The KV capacity and its ratio, such as `1,103,764 (2.00x)`."""
    if row.resolved is None:
        return "not known"
    ratio = capacity_ratio(row, base)
    return f"{row.resolved.kv_capacity_tokens:,}{unit}" + (f" ({ratio})" if ratio != "-" else "")


def capacity_ratio(row: AccuracyRow, base: AccuracyRow) -> str:
    """The KV capacity over the base's; "-" for the base itself, and where it is not known.

    Where the reference has no row, the ratio is to its capacity in the run and names it: `2.00x baseline`.
    """
    if row.resolved is None:
        return "-"
    reference = next((each.reference for each in (*row.greedy, row.accuracy) if each), None)
    if row.reference_kv_capacity_tokens and reference not in (None, row.profile, base.profile):
        return f"{row.resolved.kv_capacity_tokens / row.reference_kv_capacity_tokens:.2f}x {reference}"
    if row is base or base.resolved is None:
        return "-"
    return f"{row.resolved.kv_capacity_tokens / base.resolved.kv_capacity_tokens:.2f}x"


def failed(rows: Sequence[AccuracyRow]) -> list[str]:
    """A block that lists every failed step, greedy answer, gate and sink check, and every setting not as requested."""
    lines = []
    for row in rows:
        name = md.text(row.profile)
        lines += [f"**{name} failed in step {md.text(each.step)}:** {md.text(each.message)}" for each in row.failures]
        lines += [f"**{name}**, {md.text(line)}" for line in [*failed_gates(row), *not_as_requested(row)]]
        if is_failed_reference(row):
            lines.append(f"**{name}** is the reference and fails its own gates: distances from it mean nothing")
    return [f"Failed:\n\n{md.bullets(lines)}"] if lines else []


def not_as_requested(row: AccuracyRow) -> list[str]:
    """Attention backends and KV cache dtype that vLLM resolved otherwise, as plain text."""
    if row.resolved is None:
        return []
    settings = [
        (", ".join(sorted(each.attention_backends)), canonical_kv_dtype(each.kv_cache_dtype, row.resolved.model_dtype))
        for each in (row.requested, row.resolved)
    ]
    pairs = zip(("attention backend", "KV cache dtype"), *settings, strict=True)
    return [f"{name}: expected {expected}, got {actual}" for name, expected, actual in pairs if expected != actual]


def missing(row: AccuracyRow, measurements: list[str]) -> list[str]:
    """What a profile lacks, in at most one line. measurements: what is missing besides answers and settings."""
    parts = [*measurements, *(["resolved settings"] if row.resolved is None else [])]
    parts += [] if has_record(row) else ["accuracy record"]
    if (record := row.accuracy) and record.sinks and record.sinks.status == "not run":
        parts.append(f"sink check ({record.sinks.reason})")
    return [f"{row.profile}: {', '.join(parts)}"] if parts else []


def details(rows: Sequence[AccuracyRow]) -> list[str]:
    """Every figure with its interval and gate, the sink checks, and the greedy answers that differ."""
    blocks = []
    if scored := [row for row in rows if row.accuracy]:
        lines = [line for row in scored for line in _figure_lines(row.profile, row.accuracy)]
        checks = {row.profile: row.accuracy.sinks for row in scored}
        sinks = [md.text(f"{name}: {sink_words(check) if check else NO_RECORD}") for name, check in checks.items()]
        blocks += ["## Accuracy", md.table(["profile", "context", "path", "tokens", *FIGURES.values()], lines), NOTE]
        blocks.append(f"Sink check:\n\n{md.bullets(sinks)}")
    differing = [
        f"{md.text(row.profile)} after {md.code(match.prompt)}, {match.matched} of {match.tokens} tokens equal:"
        f" {md.code(match.text)} instead of {md.code(match.reference_text)}"
        for row in rows
        for match in row.greedy
        if match.matched < match.tokens
    ]
    return [*blocks, *(["## Greedy answers that differ", md.bullets(differing)] if differing else [])]


def _figure_lines(profile: str, record: AccuracyRecord) -> list[list[str]]:
    """A row for each path over all contexts, and for decode at each context: figures with interval and gate."""
    gates = {(gate.context, gate.path, gate.figure): gate for gate in record.gates}
    agreements = [(None, path, getattr(record, path)) for path in PATHS]
    agreements += [(entry.context, "decode", entry.decode) for entry in record.contexts]
    lines = []
    for context, path, agreement in agreements:
        if agreement:
            cells = [_figure(getattr(agreement, name), name, gates.get((context, path, name))) for name in FIGURES]
            where = f"{context:,}" if context else "all"
            lines.append([md.text(profile), where, PATHS[path], f"{agreement.tokens:,}", *cells])
    return lines


def _figure(figure: Figure, name: str, gate: Gate | None) -> str:
    """Such as `0.112 (0.094 to 0.132), ≤ 0.125`; bold where the gate failed."""
    digits = {"top1": ".2%", "kl": ".2g", "perplexity_ratio": "#.4g"}.get(name, ".3f")
    text = f"{figure.value:{digits}}"
    if figure.low is not None:
        text += f" ({figure.low:{digits}} to {figure.high:{digits}})"
    if gate is None or gate.bound is None:
        return text
    sense = {"top1": "≥", "perplexity_ratio": "within a factor of"}.get(name, "≤")
    text += f", {sense} {f'{gate.bound:.1%}' if name == 'top1' else f'{gate.bound:g}'}"
    return text if gate.passed else f"**FAILED: {text}**"
