"""Reports from sections: one page for all results, details for each, and the README's table.

A section is what one result contributes; which kinds of results there are is not known here (bench/kinds.py).
"""

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from bench.record.files import write_text
from bench.record.noise import MAX_NOISE, NOISE_ERRORS
from bench.report import markdown as md
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing

GLANCE_START, GLANCE_END = "<!-- results: begin, written by `make report` -->", "<!-- results: end -->"
GLANCE_HEADERS = ["measured on", "profile or kernel", "answers", "KV capacity", "decode speed", "date"]
MAX_PLOTS = 3
NOTE = (
    "Made from result files by `fp8-sinks bench report`; a speed stands only beside an accuracy record. ± is the noise:"
    f" {NOISE_ERRORS} standard errors of this run's samples; bold: a difference beyond it; above ±{MAX_NOISE:g} nothing"
    " is compared. Another start of the same server can differ by more."
)


class Section(NamedTuple):
    """What one result contributes to a report; blocks and cells are Markdown, the others plain text.

    subject: what was measured on what; of equal ones the newest result counts. not_measured: in one line each.
    glance: rows under GLANCE_HEADERS, without the date. draw: writes the plot to a path, None where nothing is drawn.
    """

    id: str
    created: datetime
    on_cpu: bool
    subject: str
    page: list[str]
    not_measured: list[str]
    details: list[str]
    glance: list[list[str]]
    plot_title: str
    draw: Callable[[Path], None] | None

    @property
    def title(self) -> str:
        return md.text(f"{self.subject}, {self.created:%Y-%m-%d}")

    @property
    def file_name(self) -> str:
        return re.sub(r"[^A-Za-z0-9._-]", "-", self.id).lstrip(".")


def write(
    sections: list[Section], folder: Path, name: str = "BENCHMARK_RESULTS.md", plots_folder: str = "plots"
) -> Path:
    """Write the page to folder/name, the plots, and each result's details beside the folder of plots.

    Raises Problem("file") for two results of the same id, Problem("disk") where it cannot write.
    """
    names = [section.file_name for section in sections]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise Problem("file", f"two results have the id {duplicates[0]}", "name each result file once")
    details_folder = Path(plots_folder).parent
    with writing(folder):
        plots = _draw(sections, folder, plots_folder)
        for section in sections:
            plot = [_image(section, Path(plots[section.id]).relative_to(details_folder))] if section.id in plots else []
            blocks = [f"# {section.title}", *section.page, *plot, *section.details]
            write_text(_joined(blocks), folder / details_folder / f"{section.file_name}.md")
        details = {section.id: (details_folder / f"{section.file_name}.md").as_posix() for section in sections}
        write_text(_joined(page(sections, plots, details)), folder / name)
    return folder / name


def write_run(section: Section, folder: Path, name: str = "report.md") -> Path:
    """Write one run's page and details as folder/name, and its plot; raises Problem("disk")."""
    with writing(folder):
        plots = _draw([section], folder, "plots")
        write_text(_joined([*page([section], plots, {}), *section.details]), folder / name)
    return folder / name


def write_glance(sections: list[Section], path: Path) -> Path:
    """Replace the lines between GLANCE_START and GLANCE_END in a Markdown file by one table of the newest results.

    Raises Problem("file") where the file or its markers are missing.
    """
    rows = [[*row, f"{section.created:%Y-%m-%d}"] for section in newest(sections) for row in section.glance]
    try:
        before, remainder = path.read_text(encoding="utf-8").split(GLANCE_START)
        _, after = remainder.split(GLANCE_END)
    except (OSError, ValueError) as error:
        remedy = f"write the lines {GLANCE_START} and {GLANCE_END} into it, once each"
        raise Problem("file", f"{path} has no markers for the table of results", remedy) from error
    table = md.table(GLANCE_HEADERS, rows)
    write_text(f"{before}{GLANCE_START}\n\n{table}\n\n{GLANCE_END}{after}", path)
    return path


def page(sections: list[Section], plots: dict[str, str], details: dict[str, str]) -> list[str]:
    """Blocks of the page: GPUs before CPUs, an earlier run of a subject as a link alone.

    plots, details: result id -> relative path.
    """
    blocks, shown = ["# Benchmark results", NOTE], newest(sections)
    plotted = [section.id for section in shown if section.id in plots][:MAX_PLOTS]
    for section in shown:
        blocks += [f"## {section.title}", *section.page]
        blocks += [_image(section, plots[section.id])] if section.id in plotted else []
        links = [
            f"[{'details' if run is section else f'earlier run, {run.created:%Y-%m-%d}'}]({details[run.id]})"
            for run in [section, *(run for run in sections if run not in shown)]
            if run.subject == section.subject and run.id in details
        ]
        blocks += [" · ".join(links)] if links else []
    missing = [f"{md.text(f'{each.subject}: {line}')}" for each in shown for line in each.not_measured]
    return [*blocks, *(["## Not measured", md.bullets(missing)] if missing else [])]


def newest(sections: list[Section]) -> list[Section]:
    """The newest section of each subject, GPUs before CPUs, otherwise in the given order."""
    last = {section.subject: section for section in sorted(sections, key=lambda section: (section.created, section.id))}
    return sorted((section for section in sections if section is last[section.subject]), key=lambda s: s.on_cpu)


def _draw(sections: list[Section], folder: Path, plots_folder: str) -> dict[str, str]:
    """Write the plots; result id -> path inside the folder."""
    (folder / plots_folder).mkdir(parents=True, exist_ok=True)
    plots = {section.id: f"{plots_folder}/{section.file_name}.png" for section in sections if section.draw}
    for section in sections:
        if section.draw:
            section.draw(folder / plots[section.id])
    return plots


def _image(section: Section, path: Path | str) -> str:
    return f"![{md.text(section.plot_title)}]({Path(path).as_posix()})"


def _joined(blocks: list[str]) -> str:
    return "\n\n".join(blocks) + "\n"
