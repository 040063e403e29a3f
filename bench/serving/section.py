"""A serving result's part of a report: what each profile answers, and how fast."""

from functools import partial
from pathlib import Path

from bench.accuracy import section as accuracy
from bench.accuracy import tables as answers
from bench.report import markdown as md
from bench.report import provenance
from bench.report.document import Section
from bench.serving import tables
from bench.serving.result import ServingResult, ServingRow

CPU_NOTE = "A CPU shows capacity and accuracy, not FP8 speed: that takes a GPU."


def section(result: ServingResult) -> Section:
    """The accuracy section, with speeds beside the answers."""
    accuracy_section, base, load = accuracy.section(result), answers.base_of(result.rows), highest_load(result)
    warning = provenance.load_warning(result.provenance, load)
    has_plot = any(row.accuracy or tables.shown_rates(row) for row in result.rows)
    return accuracy_section._replace(
        subject=accuracy.subject(result),
        page=[
            *tables.profile_table(result.rows, base),
            *([CPU_NOTE] if accuracy_section.on_cpu else []),
            *([md.text(warning)] if warning else []),
            *answers.failed(result.rows),
        ],
        not_measured=missing(result),
        details=[*answers.details(result.rows), *_rates(result, base), *provenance.details(result.provenance, load)],
        glance=_glance(result, base),
        plot_title=_title(result),
        draw=partial(_draw, result) if has_plot else None,
    )


def highest_load(result: ServingResult) -> float | None:
    loads = [rate.load_average for row in result.rows for rate in row.rates if rate.load_average is not None]
    return max(loads, default=None)


def missing(result: ServingResult) -> list[str]:
    """What each profile lacks, in one line; absent starts stand in the table."""
    points = {tables.point(rate) for row in result.rows for rate in row.rates}
    lines = []
    for row in result.rows:
        absent = points - {tables.point(rate) for rate in row.rates}
        rates = [f"rates at {len(absent)} of {len(points)} points"] if absent else []
        rates = [*(rates if row.rates else ["all rates"]), *row.left_out]
        lines += answers.missing(row, rates)
    return lines


def _rates(result: ServingResult, base: ServingRow) -> list[str]:
    """All rates that may be shown; empty without any."""
    if not any(tables.shown_rates(row) for row in result.rows):
        return []
    return [
        "## Rates",
        tables.rate_table(result.rows, base),
        "Median (slowest to fastest sample); decode and prefill sum over the requests at once.",
    ]


def _glance(result: ServingResult, base: ServingRow) -> list[list[str]]:
    """A row for each profile with an accuracy record, but for the base where there is another."""
    rows = [row for row in result.rows if answers.has_record(row)]
    points = tables.page_points(rows)[-1:]
    lines = []
    for row in [row for row in rows if row is not base] or rows:
        cells = [tables.rate_cell(row, base, point, brief=True) for point in points]
        lines.append(accuracy.glance_row(result, row, cells[0] if cells else "no speed"))
    return lines


def _title(result: ServingResult) -> str:
    return f"Decode rate and accuracy of {accuracy.subject(result)}"


def _draw(result: ServingResult, path: Path) -> None:
    from bench.serving import plot  # matplotlib is slow to load

    plot.serving_plot(_title(result), result.rows, path)
