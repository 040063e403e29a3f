"""The report's accuracy: what a profile answers against the reference profile, as Markdown blocks and a plot.

Blocks take the rows of a serving or an accuracy result; rows without a record keep their column and say so.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from matplotlib.transforms import ScaledTranslation

from bench.accuracy.gate_words import FIGURES, PATHS, gate_words, sink_words
from bench.accuracy.result import AccuracyRow
from bench.accuracy.verdicts import AccuracyRecord, Agreement, Figure
from bench.report import markdown as md
from bench.serving import plot as plots
from bench.serving.tables import GREEDY_LIMIT

NO_RECORD = "no record"
UNITS = {"mean_abs_delta": "nats", "p99_abs_delta": "nats", "kl": "nats a token"}


def first_screen(rows: Sequence[AccuracyRow]) -> list[str]:
    """One sentence a profile, a table of the figures over all contexts, and what they mean."""
    records = {row.profile: row.accuracy for row in rows}
    if not any(records.values()):
        return []
    return ["\n".join(f"- {md.text(line)}" for line in answer_lines(rows)), _table(records), _note(rows)]


def answer_lines(rows: Sequence[AccuracyRow]) -> list[str]:
    """Plain text: does each profile answer as the reference does, and what does it cost; "topic: rest"."""
    lines = []
    for row in rows:
        record = row.accuracy
        if record is None or record.reference == row.profile:
            continue
        found = record.decode
        lines.append(
            f"Accuracy of {row.profile}: {verdict(record)}; over {found.tokens:,} given tokens, decoding finds the"
            f" same token most likely as {record.reference} at {found.top1.value:.1%} of the positions, moves the right"
            f" one's log-probability by {found.mean_abs_delta.value:.3f} nats on average, and has"
            f" {_written(found.perplexity_ratio.value, '.3f')} times the perplexity"
        )
    return lines


def verdict(record: AccuracyRecord) -> str:
    """pass, FAILED or not judged, with how many gates, and when if not in the run itself."""
    judged = [gate for gate in record.gates if gate.passed is not None]
    later = judged_later(record)
    if record.passed is False:
        return f"FAILED ({len(record.failed_gates)} of {len(judged)} gates{_sinks_too(record)}{later})"
    if record.passed:
        return f"pass ({len(judged)} gates{later})"
    return f"not judged (this model has no thresholds{later})"


def judged_later(record: AccuracyRecord) -> str:
    """Empty for the run's own verdict."""
    return f"; judged after the run, {record.judged_at:%Y-%m-%d}" if record.judged_at else ""


def failed(rows: Sequence[AccuracyRow]) -> list[str]:
    """A block for each profile with a failed gate, all of its gates that failed in it."""
    blocks = []
    for row in rows:
        record = row.accuracy
        if record is None or record.passed is not False:
            continue
        lines = [f"- {md.text(gate_words(gate))}" for gate in record.failed_gates]
        if record.sinks and record.sinks.status == "FAILED":
            lines.append(f"- sinks: {md.text(sink_words(record.sinks))}")
        blocks.append(f"**FAILED**: {md.text(row.profile)} against {record.reference}\n\n" + "\n".join(lines))
    return blocks


def details(rows: Sequence[AccuracyRow]) -> list[str]:
    """Below the first screen: every context of every profile, all gates, the sink check."""
    blocks = []
    for row in rows:
        record = row.accuracy
        if record is None:
            blocks.append(f"**{md.text(row.profile)}**: no accuracy record")
            continue
        blocks += [f"**{md.text(row.profile)}** against {md.text(_other(row.profile, record))}", _context_table(record)]
        blocks.append(f"Sink check: {md.text(sink_words(record.sinks) if record.sinks else NO_RECORD)}")
        gates = [[_outcome(gate.passed), md.text(gate_words(gate))] for gate in record.gates if gate.passed is not None]
        if gates:
            blocks.append(md.details(f"Gates of {row.profile}", [md.table(["", "gate"], gates)]))
    return blocks


def message(records: dict[str, AccuracyRecord | None]) -> str:
    """The plot's title: how far each profile is from the reference at the shortest and the longest context."""
    measured = {profile: record for profile, record in records.items() if record}
    others = {profile: record for profile, record in measured.items() if record.reference != profile}
    parts = []
    for profile, record in (others or measured).items():
        first, last = record.contexts[0], record.contexts[-1]
        parts.append(
            f"{profile} {first.decode.mean_abs_delta.value:.3f} nats from {_other(profile, record)} after"
            f" {first.context:,} tokens, {last.decode.mean_abs_delta.value:.3f} after {last.context:,}"
        )
    return "Accuracy: " + "; ".join(parts)


def plot(records: dict[str, AccuracyRecord | None], path: Path) -> None:
    """Mean |delta log p| (nats) with its interval over the context: decode and prefill. At least one record."""
    with style.context(["default", plots.STYLE]):
        figure, cells = plots.new_figure(message(records), 4.2, 1, 2)
        for cell, way in zip(cells, ("decode", "prefill"), strict=True):
            for place, (profile, record) in enumerate(records.items()):
                if record:
                    _line(cell, place, len(records), profile, record, way)
            _axes(cell, records, way)
            cell.set_ylim(0, 1.06 * _highest(records) or 1)
        cells[0].set_ylabel("mean |Δ log p| (nats)")
        cells[1].tick_params(labelleft=False)
        plots.legend(figure, cells[0])
        plots.save(figure, path)


def _line(cell: Axes, place: int, count: int, profile: str, record: AccuracyRecord, way: str) -> None:
    at = [(one.context, getattr(one, way).mean_abs_delta) for one in record.contexts if getattr(one, way)]
    if not at:
        return
    below = [figure.value - figure.low if figure.low is not None else 0 for _, figure in at]
    above = [figure.high - figure.value if figure.high is not None else 0 for _, figure in at]
    aside = (place - (count - 1) / 2) * 4
    cell.errorbar(
        [context for context, _ in at],
        [figure.value for _, figure in at],
        yerr=[below, above],
        color=plots.colour_of(place),
        marker=plots.MARKERS[place % len(plots.MARKERS)],
        capsize=3,
        elinewidth=1.2,
        label=_label(profile, record),
        transform=cell.transData + ScaledTranslation(aside / 72, 0, cell.figure.dpi_scale_trans),
    )
    for bound in _bounds(record, way)[-1:]:
        cell.axhline(bound, color=plots.colour_of(place), linestyle="--", linewidth=1.2)


def _bounds(record: AccuracyRecord, way: str) -> list[float]:
    """What the mean may be: over all contexts, then at each one where that has a bound of its own."""
    gates = [gate for gate in record.gates if (gate.path, gate.figure) == (way, "mean_abs_delta")]
    return [gate.bound for gate in gates if gate.bound is not None]


def _highest(records: dict[str, AccuracyRecord | None]) -> float:
    """The highest point of both cells: an interval's upper end, a value or a gate."""
    shown = [record for record in records.values() if record]
    found = [bound for record in shown for way in ("decode", "prefill") for bound in _bounds(record, way)[-1:]]
    for record in shown:
        means = [way.mean_abs_delta for one in record.contexts for way in (one.decode, one.prefill) if way]
        found += [mean.value if mean.high is None else mean.high for mean in means]
    return max(found)


def _axes(cell: Axes, records: dict[str, AccuracyRecord | None], way: str) -> None:
    contexts = sorted({one.context for record in records.values() if record for one in record.contexts})
    gates = any(_bounds(record, way) for record in records.values() if record)
    cell.set_title(f"{way}; dashed: the gate" if gates else way, loc="left")
    cell.set_xscale("log")
    cell.set_xlim(contexts[0] / 1.4, contexts[-1] * 1.4)
    cell.set_xticks(contexts)
    cell.xaxis.set_major_formatter(plots.NUMBER)
    cell.xaxis.set_minor_locator(NullLocator())
    cell.set_xlabel("context (tokens)")


def _table(records: dict[str, AccuracyRecord | None]) -> str:
    headers = ["", *(_label(name, one) for name, one in records.items())]
    lines = [["Gates", *(_verdict_cell(one) for one in records.values())]]
    shown = [("decode", field) for field in FIGURES]
    for way, field in [*shown, ("prefill", "mean_abs_delta"), ("prefill", "top1"), ("paths", "mean_abs_delta")]:
        unit = f", {UNITS[field]}" if field in UNITS else ""
        cells = [_figure_cell(one and getattr(one, way), field) for one in records.values()]
        lines.append([md.text(f"{PATHS[way].capitalize()}: {FIGURES[field]}{unit}"), *cells])
    lines.append(["Sink check", *(_sink_cell(one) for one in records.values())])
    return md.table(headers, lines)


def _context_table(record: AccuracyRecord) -> str:
    lines = []
    for one in record.contexts:
        for way in ("decode", "prefill"):
            found: Agreement | None = getattr(one, way)
            if found:
                cells = [_figure_cell(found, field) for field in FIGURES]
                lines.append([f"{one.context:,}", way, f"{found.tokens:,} in {found.texts}", *cells])
    return md.table(["context", "", "tokens in texts", *FIGURES.values()], lines)


def _note(rows: Sequence[AccuracyRow]) -> str:
    record = max((row.accuracy for row in rows if row.accuracy), key=lambda one: one.decode.tokens)
    contexts = [one.context for one in record.contexts]
    text = "text that the model was not trained on" if record.text == "heldout" else "the Python language reference"
    margins = [match.margin for row in rows for match in row.greedy]
    margin = f" Smallest margin here: {plots.number(min(margins))} nats." if margins else ""
    return (
        f"Log-probabilities of {record.decode.tokens:,} given tokens of {text}, after {contexts[0]:,} to"
        f" {contexts[-1]:,} tokens of context, against those of {md.text(record.reference)}; its own column is the"
        " noise: the same server asked again, in a serving run after the shortest context only."
        " Decode: token by token through the KV cache; prefill: all at once."
        " In brackets 95% intervals, drawn over whole texts, since the tokens of a text are correlated."
        f" {GREEDY_LIMIT}{margin}"
    )


def _figure_cell(found: Agreement | None, field: str) -> str:
    if found is None:
        return "not measured"
    figure: Figure = getattr(found, field)
    digits = {"top1": ".2%", "kl": ".2g"}.get(field, ".3f")
    if figure.low is None or figure.high is None:
        return _written(figure.value, digits)
    return f"{_written(figure.value, digits)} ({_written(figure.low, digits)} to {_written(figure.high, digits)})"


def _written(value: float, digits: str) -> str:
    """A broken server's perplexity ratio can have 300 digits."""
    return f"{value:{digits}}" if value < 1e6 else f"{value:.1e}"


def _verdict_cell(record: AccuracyRecord | None) -> str:
    if record is None:
        return NO_RECORD
    text = verdict(record)
    return f"**{text}**" if record.passed is False else text


def _sink_cell(record: AccuracyRecord | None) -> str:
    if record is None or record.sinks is None:
        return NO_RECORD
    sinks = record.sinks
    status = f"**{sinks.status}**" if sinks.status == "FAILED" else sinks.status
    if sinks.reason:
        return f"{status}: {md.text(sinks.reason)}"
    true, wrong = sinks.mean_abs_delta["true"], min(v for k, v in sinks.mean_abs_delta.items() if k != "true")
    return f"{status}: true {true:.3f}, nearest wrong {wrong:.3f}"


def _label(profile: str, record: AccuracyRecord | None) -> str:
    return f"{profile}, asked again" if record and record.reference == profile else profile


def _other(profile: str, record: AccuracyRecord) -> str:
    return "itself" if record.reference == profile else record.reference


def _outcome(passed: bool | None) -> str:
    return "pass" if passed else "**FAILED**"


def _sinks_too(record: AccuracyRecord) -> str:
    return " and the sinks" if record.sinks and record.sinks.status == "FAILED" else ""
