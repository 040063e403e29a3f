"""What each profile answers, from the rows of an accuracy or a serving result: cells, failures and tables."""

from collections.abc import Sequence

from bench.accuracy.gate_words import FIGURES, PATHS, failed_gates, relative_words, sink_words
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
    names += [row.profile for row in rows if row.requested and row.requested.kv_cache_dtype in SIXTEEN_BIT]
    return next((row for row in rows if row.profile == next(iter(names), None)), rows[0])


def has_record(row: AccuracyRow) -> bool:
    return bool(row.greedy or row.accuracy)


def is_failed_reference(row: AccuracyRow) -> bool:
    """Whether a row is the reference and fails its own gates: distances from it mean nothing."""
    return is_reference(row) and bool(failed_gates(row))


def is_reference(row: AccuracyRow) -> bool:
    """Whether a row's answers are compared with its own profile's."""
    records = [*row.greedy, *([row.accuracy] if row.accuracy else [])]
    return any(record.reference == row.profile for record in records)


def outcome(row: AccuracyRow, base: AccuracyRow) -> str | None:
    """pass, FAILED (all are against a failed reference), undecided, not judged or reference; None without a record."""
    record = row.accuracy
    if not has_record(row):
        return None
    if failed_gates(row) or is_failed_reference(base):
        return "FAILED"
    if is_reference(row):
        return "reference"
    if record and record.relative and record.relative.status == "undecided":
        return "undecided"
    return "not judged" if record and record.passed is None else "pass"


def answers(row: AccuracyRow, base: AccuracyRow) -> str | None:
    """The accuracy record as plain text, None without one: `FAILED, gates failed: 2, mean |Δ log p| 0.111`."""
    record, failures = row.accuracy, len(failed_gates(row))
    if not has_record(row):
        return None
    if row is not base and is_failed_reference(base):
        return REFERENCE_FAILED
    parts = [outcome(row, base), *([f"gates failed: {failures}"] if failures else [])]
    if not record:
        return ", ".join([*parts, "greedy " + " ".join(f"{match.matched}/{match.tokens}" for match in row.greedy)])
    if record.sinks and record.sinks.status in ("FAILED", "not run"):
        parts.append(f"sinks {record.sinks.status}")
    if record.relative and record.relative.status == "not judged":
        parts.append(f"over {record.relative.profile} not judged")
    mean = getattr(record, record.main_path).mean_abs_delta.value
    parts.append(f"mean |Δ log p| {mean:.3f}" + ("" if record.decode else " in prefill"))
    return ", ".join([*parts, *([f"judged after the run, {record.judged_at:%Y-%m-%d}"] if record.judged_at else [])])


def first_cells(row: AccuracyRow, base: AccuracyRow) -> list[str]:
    """A row's cells under FIRST_HEADERS."""
    return [md.text(shown_profile(row)), md.verdict(answers(row, base) or NO_RECORD), md.text(capacity(row, base))]


def shown_profile(row: AccuracyRow) -> str:
    """The profile, with its decoder unless that is vLLM's own."""
    return row.profile if row.decoder in (None, "stock") else f"{row.profile} (decoder {row.decoder})"


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
    return md.listing("Failed:", lines)


def not_as_requested(row: AccuracyRow) -> list[str]:
    """Decoder, attention backends and KV cache dtype that vLLM resolved otherwise, as plain text."""
    if row.requested is None or row.resolved is None:
        return []
    sides, dtype = (row.requested, row.resolved), row.resolved.model_dtype
    settings = {
        "decoder": [row.decoder, row.resolved.decoder],
        "attention backend": [", ".join(sorted(side.attention_backends)) for side in sides],
        "KV cache dtype": [canonical_kv_dtype(side.kv_cache_dtype, dtype) for side in sides],
    }
    return [f"{name}: expected {pair[0]}, got {pair[1]}" for name, pair in settings.items() if pair[0] != pair[1]]


def missing(row: AccuracyRow, measurements: list[str]) -> list[str]:
    """What a profile lacks, in at most one line. measurements: what is missing besides answers and settings."""
    parts = [*measurements, *row.unavailable]
    parts += ["resolved settings"] if row.requested and row.resolved is None else []
    parts += [] if has_record(row) else ["accuracy record"]
    if (record := row.accuracy) and record.sinks and record.sinks.status == "not run":
        parts.append(f"sink check ({record.sinks.reason})")
    if record and record.relative and record.relative.reason:
        parts.append(f"gate over {record.relative.profile} ({record.relative.reason})")
    return [f"{row.profile}: {', '.join(parts)}"] if parts else []


def not_known(rows: Sequence[AccuracyRow]) -> list[str]:
    """A block on external servers: what is not known of them, and what their answers are compared with."""
    lines = []
    for row in rows:
        if row.requested is None:
            reference = "its own first ones" if is_reference(row) else "the reference server's"
            compared = f"compared with {reference}" if has_record(row) else "not compared"
            lines.append(
                f"**{md.text(row.profile)}** is {md.text(row.description)}. Not known: its machine, versions, settings,"
                " attention backend, KV cache, starts; the provenance is that of the bench."
                f" Its answers are {compared}."
            )
    return lines


def details(rows: Sequence[AccuracyRow]) -> list[str]:
    """Every figure with its interval and gate, the sink checks and the relative gates."""
    scored = [row for row in rows if row.accuracy]
    lines = [[md.text(row.profile), *cells] for row in scored for cells in _figure_cells(row.accuracy)]
    checks = [md.text(f"{row.profile}: {sink_words(row.accuracy.sinks)}") for row in scored if row.accuracy.sinks]
    table = md.table(["profile", "context", "path", "tokens", *FIGURES.values()], lines)
    relative = [(row.profile, row.accuracy.relative) for row in scored if row.accuracy.relative]
    ratios = [md.text(f"{name}: {relative_words(gate)}") for name, gate in relative]
    lists = [*md.listing("Sink check:", checks), *md.listing("Over another profile:", ratios)]
    return ["## Accuracy", table, NOTE, *lists] if scored else []


def _figure_cells(record: AccuracyRecord) -> list[list[str]]:
    """A row for each path over all contexts, and for decode at each context: figures with interval and gate."""
    gates = {(gate.context, gate.path, gate.figure): gate for gate in record.gates}
    agreements = {(None, path): getattr(record, path) for path in PATHS}
    agreements |= {(entry.context, "decode"): entry.decode for entry in record.contexts}
    return [
        [f"{context:,}" if context else "all", PATHS[path], f"{agreement.tokens:,}"]
        + [_figure(getattr(agreement, name), gates.get((context, path, name))) for name in FIGURES]
        for (context, path), agreement in agreements.items()
        if agreement
    ]


def _figure(figure: Figure, gate: Gate | None) -> str:
    """Such as `0.1123 (0.09401 to 0.1318), ≤ 0.125`; bold where the gate failed."""
    text = f"{figure.value:.4g}"
    if figure.low is not None:
        text += f" ({figure.low:.4g} to {figure.high:.4g})"
    if gate is None or gate.bound is None:
        return text
    relation = {"top1": "≥", "perplexity_ratio": "within a factor of"}.get(gate.figure, "≤")
    text += f", {relation} {gate.bound:g}"
    return text if gate.passed else f"**FAILED: {text}**"
