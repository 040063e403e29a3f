"""A serving result's part of a report: what each profile answers, and how fast."""

from functools import partial
from pathlib import Path

from bench.accuracy import formats
from bench.accuracy import section as accuracy
from bench.accuracy import tables as answers
from bench.report import markdown as md
from bench.report import provenance
from bench.report.document import Section
from bench.serving import tables
from bench.serving.result import ServingResult
from bench.suite import GridPoint

UNFINISHED = "**The run is unfinished:** --resume measures the rest."
CPU_NOTE = "A CPU shows capacity and accuracy, not FP8 speed: that takes a GPU."


def section(result: ServingResult) -> Section:
    """The accuracy section, with speeds beside the answers."""
    part, rows, base = accuracy.section(result), result.rows, answers.base_of(result.rows)
    warning = provenance.load_warning(result.provenance, highest_load(result))
    notes = [CPU_NOTE] if result.provenance.machine.family == "cpu" and accuracy.is_ours(result) else []
    notes += [md.text(warning)] if warning else []
    notes += [f"The reference server serves {md.text(result.reference_model)}."] if result.reference_model else []
    notes += [UNFINISHED] if is_unfinished(result) else []
    rates, points = tables.rate_table(rows, base), tables.page_points(rows)[-1:]
    latencies = tables.latency_table(rows, result.slo)
    speeds = partial(_speed, base=base, points=points)
    compared = formats.table(rows, result.model, "decode speed", speeds)
    return part._replace(
        subject=accuracy.subject(result),
        page=[*tables.profile_table(rows, base), *compared, *answers.not_known(rows), *notes, *answers.failed(rows)],
        not_measured=missing(result),
        details=[*part.details, *rates, *latencies],
        glance=accuracy.glance(result, lambda row: tables.rate_cell(row, base, *points) if points else "no speed"),
        draw=partial(_draw, result) if rates or part.draw else None,
    )


def _speed(row, base, points):
    return tables.ratio_at(row, base, *points) if points else ""


def highest_load(result: ServingResult) -> float | None:
    loads = [rate.load_average for row in result.rows for rate in row.rates if rate.load_average is not None]
    return max(loads, default=None)


def missing(result: ServingResult) -> list[str]:
    """What each profile lacks, in one line; absent starts stand in the table."""
    points, lines = _points(result), []
    for row in result.rows:
        absent = points - {rate.grid_point for rate in row.rates}
        rates = [f"rates at {len(absent)} of {len(points)} points"] if absent else []
        rates = [*(rates if row.rates else ["all rates"]), *row.left_out, *row.unfinished]
        lines += answers.missing(row, rates)
    return lines


def is_unfinished(result: ServingResult) -> bool:
    """Whether a run has not executed all of its steps; False where the result does not tell."""
    points = {*result.grid.every_point()} if result.grid else set()
    measured = [{each.grid_point for each in (*row.rates, *row.unrated)} for row in result.rows]
    return any(points - each for each in measured) or any(row.unfinished for row in result.rows)


def _points(result: ServingResult) -> set[GridPoint]:
    """The points of the run's grid; of a result without it, those that any profile has a rate at."""
    if result.grid:
        return {*result.grid.every_point()}
    return {rate.grid_point for row in result.rows for rate in row.rates}


def _draw(result: ServingResult, path: Path) -> None:
    from bench.serving.plot import serving_plot  # matplotlib is slow to load

    serving_plot(f"Speed and accuracy of {accuracy.subject(result)}", result.rows, path)
