"""Reports from sections: one page for all results, details for each, and the README's table.

A section is what one result contributes; which kinds of results there are is not known here (bench/kinds.py).
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.record.files import write_text
from bench.record.noise import MAX_NOISE, NOISE_ERRORS
from bench.report import markdown as md
from bench.report import provenance
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing
from vllm_launch.provenance import Provenance

GLANCE_START, GLANCE_END = "<!-- results: begin, written by `make report` -->", "<!-- results: end -->"
GLANCE_HEADERS = ["measured on", "profile, kernel", "answers", "KV capacity", "decode speed"]
GLANCE_NOTE = "One request, longest context; ratios to `baseline`; (noise): the samples show no difference."
MAX_PLOTS = 3
NOTE = (
    "Made from result files by `fp8-sinks bench report`; a speed stands only beside an accuracy record. ± is the noise:"
    f" {NOISE_ERRORS} standard errors of this run's samples. Bold: a difference beyond the noise; (noise): no"
    f" difference, or noise above ±{MAX_NOISE:g}. Another start of the same server can differ by more."
)


class Section(NamedTuple):
    """What one result contributes to a report; blocks and cells are Markdown, the others plain text.

    subject: what was measured on what; of equal ones the newest result counts. not_measured: in one line each.
    glance: rows under GLANCE_HEADERS. draw: writes the plot to a path, None where nothing is drawn. glance_plot: a plot
    for the README.
    """

    id: str
    source: Provenance
    subject: str
    page: list[str]
    not_measured: list[str]
    details: list[str]
    glance: list[list[str]]
    draw: Callable[[Path], None] | None
    glance_plot: bool = False

    @property
    def title(self) -> str:
        return md.text(f"{self.subject}, {self.source.created:%Y-%m-%d}")

    @property
    def file_name(self) -> str:
        return re.sub(r"[^A-Za-z0-9._-]", "-", self.id).lstrip(".")


def write(sections: list[Section], folder: Path, name: str, plots: Path) -> Path:
    """Write the page to folder/name, the plots to folder/plots, and each result's details beside that.

    Raises Problem("file") for two results of the same id, Problem("disk") where it cannot write.
    """
    names = [section.file_name for section in sections]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise Problem("file", f"two results have the id {duplicates[0]}", "name each result file once")
    for section in sections:
        _write_details(section, folder / plots, folder / plots.parent / f"{section.file_name}.md")
    with writing(folder):
        write_text("\n\n".join(page(sections, plots)) + "\n", folder / name)
    return folder / name


def write_run(section: Section, folder: Path) -> Path:
    """Write one run's details as folder/report.md, and its plot; raises Problem("disk")."""
    return _write_details(section, folder / "plots", folder / "report.md")


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
    plotted = [section for section in shown if section.glance_plot and section.draw][:1]
    blocks += [_image(section, Path(os.path.relpath(plots, path.parent))) for section in plotted]
    write_text("\n\n".join([f"{before}{GLANCE_START}", *blocks, f"{GLANCE_END}{after}"]), path)
    return path


def page(sections: list[Section], plots: Path) -> list[str]:
    """Blocks of the page: GPUs before CPUs, an earlier run of a subject as a link alone."""
    blocks, shown = ["# Benchmark results", NOTE], newest(sections)
    plotted = [section for section in shown if section.draw][:MAX_PLOTS]
    for section in shown:
        images = [_image(section, plots)] if section in plotted else []
        runs = [section, *(run for run in sections if run.subject == section.subject and run is not section)]
        links = [f"[{run.source.created:%Y-%m-%d}]({(plots.parent / run.file_name).as_posix()}.md)" for run in runs]
        blocks += [f"## {section.title}", *section.page, *images, f"Details: {', '.join(links)}"]
    missing = [md.text(f"{section.subject}: {line}") for section in shown for line in section.not_measured]
    return [*blocks, *md.listing("## Not measured", missing)]


def newest(sections: list[Section]) -> list[Section]:
    """The newest section of each subject, GPUs before CPUs, otherwise in the given order."""
    last = {each.subject: each for each in sorted(sections, key=lambda section: (section.source.created, section.id))}
    shown = [section for section in sections if section is last[section.subject]]
    return sorted(shown, key=lambda section: section.source.machine.family == "cpu")


def _write_details(section: Section, plots: Path, path: Path) -> Path:
    """Write one result's page and details to `path`, and its plot into the folder `plots` beside it."""
    images = [_image(section, Path(plots.name))] if section.draw else []
    missing = md.listing("## Not measured", [md.text(line) for line in section.not_measured])
    blocks = [f"# {section.title}", NOTE, *section.page, *images, *missing, *section.details]
    blocks += provenance.details(section.source)
    with writing(path.parent):
        plots.mkdir(parents=True, exist_ok=True)
        if section.draw:
            section.draw(plots / f"{section.file_name}.png")
        write_text("\n\n".join(blocks) + "\n", path)
    return path


def _image(section: Section, folder: Path) -> str:
    return f"![{md.text(section.subject)}]({(folder / section.file_name).as_posix()}.png)"
