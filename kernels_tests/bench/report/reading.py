"""What tests read of a report: the cells of its tables, and the data of its plots."""

import re

from matplotlib.axes import Axes


def tables(text: str) -> list[list[dict[str, str]]]:
    """The tables of a Markdown text as rows of header -> cell; every row has as many cells as there are headers.

    A header that stands in a table again gets its number: `ratio`, `ratio 2`.
    """
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return [[dict(zip(_headers(lines[0]), _cells(line), strict=True)) for line in lines[2:]] for lines in blocks]


def row(text: str, name: str, column: str | None = None) -> dict[str, str]:
    """The first row whose first cell is `name`, in a table that has the column."""
    rows = (row for table in tables(text) for row in table if column is None or column in row)
    return next(row for row in rows if next(iter(row.values())) == name)


def value(text: str, name: str) -> str:
    """The last cell of the first row whose first cell is `name`."""
    return list(row(text, name).values())[-1]


def _headers(line: str) -> list[str]:
    cells = _cells(line)
    counts = [cells[: index + 1].count(cell) for index, cell in enumerate(cells)]
    return [cell if count == 1 else f"{cell} {count}".strip() for cell, count in zip(cells, counts, strict=True)]


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def error_lines(panel: Axes) -> dict[str, list[tuple[float, float, float, float]]]:
    """Label -> (x, value, lowest, highest) of each line with error bars."""
    series = {}
    for container in panel.containers:
        line, _, (bars,) = container.lines
        ends = [(float(low), float(high)) for (_, low), (_, high) in bars.get_segments()]
        x, values = (list(map(float, data)) for data in line.get_data())
        series[container.get_label()] = [(*point, *end) for *point, end in zip(x, values, ends, strict=True)]
    return series
