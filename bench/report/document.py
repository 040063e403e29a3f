"""Reports from sections: one page for all results, details for each, and the README's table.

A section is what one result contributes; which kinds of results there are is not known here (bench/kinds.py).
"""

import os
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
GLANCE_HEADERS = ["measured on", "profile, kernel", "answers", "KV capacity", "decode speed"]
GLANCE_NOTE = "One request, longest context; ratios to `baseline`; (noise): the samples show no difference."
MAX_PLOTS = 3
NOTE = (
    "Made from result files by `fp8-sinks bench report`; a speed stands only beside an accuracy record. ± is the noise:"
    f" {NOISE_ERRORS} standard errors of this run's samples; bold: a difference beyond it; above ±{MAX_NOISE:g} nothing"
    " is compared. Another start of the same server can differ by more."
)


class Section(NamedTuple):
    """What one result contributes to a report; blocks and cells are Markdown, the others plain text.

    subject: what was measured on what; of equal ones the newest result counts. not_measured: in one line each.
    glance: rows under GLANCE_HEADERS. draw: writes the plot to a path, None where nothing is drawn. glance_plot: a plot
    for the README.
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
    glance_plot: bool = False

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
        _draw(sections, folder / plots_folder)
        for section in sections:
            image = _image(section, Path(plots_folder).name)
            blocks = [f"# {section.title}", *section.page, *image, *section.details]
            write_text(_joined(blocks), folder / details_folder / f"{section.file_name}.md")
        write_text(_joined(page(sections, plots_folder, details_folder)), folder / name)
    return folder / name


def write_run(section: Section, folder: Path, name: str = "report.md") -> Path:
    """Write one run's page and details as folder/name, and its plot; raises Problem("disk")."""
    with writing(folder):
        _draw([section], folder / "plots")
        write_text(_joined([*page([section], "plots"), *section.details]), folder / name)
    return folder / name


def write_glance(sections: list[Section], path: Path, plots: Path) -> Path:
    """Replace the lines between GLANCE_START and GLANCE_END in a Markdown file by the newest results at a glance.

    plots: the folder with the plots. Raises Problem("file") where the file or its markers are missing.
    """
    shown = newest(sections)
    try:
        before, remainder = path.read_text(encoding="utf-8").split(GLANCE_START)
        _, after = remainder.split(GLANCE_END)
    except (OSError, ValueError) as error:
        remedy = f"write the lines {GLANCE_START} and {GLANCE_END} into it, once each"
        raise Problem("file", f"{path} has no markers for the table of results", remedy) from error
    blocks = [md.table(GLANCE_HEADERS, [row for section in shown for row in section.glance]), GLANCE_NOTE]
    for section in [section for section in shown if section.glance_plot and section.draw][:1]:
        image = Path(os.path.relpath(plots / f"{section.file_name}.png", path.parent)).as_posix()
        blocks.append(f"![{md.text(section.subject)}]({image})")
    write_text("\n\n".join([f"{before}{GLANCE_START}", *blocks, f"{GLANCE_END}{after}"]), path)
    return path


def page(sections: list[Section], plots_folder: str, details_folder: Path | None = None) -> list[str]:
    """Blocks of the page: GPUs before CPUs, an earlier run of a subject as a link alone; no links without details."""
    blocks, shown = ["# Benchmark results", NOTE], newest(sections)
    plotted = [section.id for section in shown if section.draw][:MAX_PLOTS]
    for section in shown:
        blocks += [f"## {section.title}", *section.page]
        blocks += _image(section, plots_folder) if section.id in plotted else []
        if details_folder is not None:
            runs = {section.file_name: "details"}
            for run in sections:
                if run.subject == section.subject and run is not section:
                    runs[run.file_name] = f"earlier run, {run.created:%Y-%m-%d}"
            links = [f"[{label}]({(details_folder / name).as_posix()}.md)" for name, label in runs.items()]
            blocks.append(" · ".join(links))
    missing = [md.text(f"{each.subject}: {line}") for each in shown for line in each.not_measured]
    return [*blocks, *(["## Not measured", md.bullets(missing)] if missing else [])]


def newest(sections: list[Section]) -> list[Section]:
    """The newest section of each subject, GPUs before CPUs, otherwise in the given order."""
    last = {section.subject: section for section in sorted(sections, key=lambda section: (section.created, section.id))}
    return sorted((section for section in sections if section is last[section.subject]), key=lambda s: s.on_cpu)


def _draw(sections: list[Section], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for section in sections:
        if section.draw:
            section.draw(folder / f"{section.file_name}.png")


def _image(section: Section, folder: str) -> list[str]:
    return [f"![{md.text(section.plot_title)}]({folder}/{section.file_name}.png)"] if section.draw else []


def _joined(blocks: list[str]) -> str:
    return "\n\n".join(blocks) + "\n"
