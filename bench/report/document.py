"""The report: Markdown and plots from result files alone; the same files give the same bytes.

Law: a speed is shown only beside an accuracy record.
"""

import re
from pathlib import Path

from bench.accuracy import section as report_accuracy
from bench.accuracy.result import AccuracyResult, AccuracyRow
from bench.kernels import section as report_kernels
from bench.kernels.plot import kernels_plot
from bench.kernels.result import KernelsResult
from bench.kinds import read
from bench.record.files import write_text
from bench.roofline import section as report_roofline
from bench.serving import plot as plots
from bench.serving import section as summary
from bench.serving import tables
from bench.serving.result import ServingResult, ServingRow
from bench.serving.tables import NOT_SHOWN
from flashinfer_patches.errors import Problem

GLANCE_BEGIN, GLANCE_END = "<!-- results: begin, written by `make report` -->", "<!-- results: end -->"


def write(
    results_paths: list[Path], folder: Path, name: str = "BENCHMARK_RESULTS.md", plots_folder: str = "plots"
) -> Path:
    """Write folder/name, servers before kernels and newest first, and its plots; returns the report's path.

    Raises Problem("file") for a file that is no result and for two of the same id, Problem("disk") where it
    cannot write.
    """
    results = _in_order(results_paths)
    ids = [_file_name(one.id) for one in results]
    twice = sorted({one for one in ids if ids.count(one) > 1})
    if twice:
        raise Problem("file", f"two results have the id {twice[0]}", "name each result file once")
    try:
        (folder / plots_folder).mkdir(parents=True, exist_ok=True)
        drawn = {one.id: _draw(one, folder, plots_folder) for one in results}
        write_text(markdown(results, drawn), folder / name)
    except OSError as error:
        remedy = "choose another folder, or mend its rights"
        raise Problem("disk", f"cannot write the report in {folder}: {error.strerror}", remedy) from error
    return folder / name


def write_glance(results_paths: list[Path], path: Path) -> Path:
    """Renew the lines between GLANCE_BEGIN and GLANCE_END in a Markdown file: what each subject's newest result says.

    Raises Problem("file") where the file or its markers are missing.
    """
    blocks, results = [], _in_order(results_paths)
    earlier = _earlier(results)
    for one in results:
        if one.id not in earlier:
            if one.kind == "kernels":
                blocks += [f"**{report_kernels.headline(one)}**", report_kernels.glance_lines(one)]
            else:
                blocks += [f"**{summary.headline(one)}**", summary.summary_lines(one)]
    try:
        before, rest = path.read_text(encoding="utf-8").split(GLANCE_BEGIN)
        _, after = rest.split(GLANCE_END)
    except (OSError, ValueError) as error:
        remedy = f"write the lines {GLANCE_BEGIN} and {GLANCE_END} into it, once each"
        raise Problem("file", f"{path} has no place for the results at a glance", remedy) from error
    write_text("\n\n".join([f"{before}{GLANCE_BEGIN}", *blocks, f"{GLANCE_END}{after}"]), path)
    return path


def _in_order(results_paths: list[Path]) -> list[ServingResult | KernelsResult]:
    """Servers before kernels, the newest first."""
    results = [_as_serving(read(path)) for path in results_paths]
    newest = sorted(results, key=lambda one: (one.provenance.created.isoformat(), one.id), reverse=True)
    return sorted(newest, key=lambda one: one.kind == "kernels")


def _earlier(results: list[ServingResult | KernelsResult]) -> set[str]:
    """Ids of the results that a newer one of the same model, machine and software stands before."""
    seen, earlier = set(), set()
    for one in results:
        short = report_kernels if one.kind == "kernels" else summary
        subject, _, _date = short.headline(one).rpartition(", ")
        if subject in seen:
            earlier.add(one.id)
        seen.add(subject)
    return earlier


def _as_serving(result: ServingResult | AccuracyResult | KernelsResult) -> ServingResult | KernelsResult:
    """An accuracy result with the rows of a serving result without any speed: the report has one form for both.

    Its kind stays: no speed is missing in it.
    """
    if result.kind != "accuracy":
        return result
    nothing = {"wiped": None, "starts": [], "completion": None, "rates": []}
    rows = [
        ServingRow(**({name: getattr(row, name) for name in AccuracyRow.model_fields} | nothing)) for row in result.rows
    ]
    return result.model_copy(update={"rows": rows})


def markdown(results: list[ServingResult | KernelsResult], plot_names: dict[str, dict[str, str]]) -> str:
    """The report's text. plot_names: result id -> which plot -> the plot's relative path."""
    blocks = ["# Benchmark results", "Made from result files by `fp8-sinks bench report`, not by hand."]
    earlier = _earlier(results)
    for result in results:
        of_kind = report_kernels.blocks if result.kind == "kernels" else _serving_blocks
        heading, *rest = of_kind(result, plot_names.get(result.id, {}))
        blocks += [f"{heading}, an earlier run" if result.id in earlier else heading, *rest]
    return "\n\n".join(blocks) + "\n"


def _serving_blocks(result: ServingResult, plot_names: dict[str, str]) -> list[str]:
    blocks = [f"## {summary.headline(result)}", *summary.first_screen(result, plot_names)]
    blocks += ["### Accuracy", *report_accuracy.details(result.rows)]
    blocks += ["### Requested and resolved", tables.resolved_table(result)]
    if summary.has_speed(result):
        records = summary.accuracies(result)
        blocks += ["### Starts", tables.starts_table(result)]
        blocks += ["### Against the roofline", *report_roofline.blocks(result, records, summary.base_of(result))]
        blocks += ["### All rates", *tables.rate_tables(result, records)]
    blocks += ["### Greedy answers", *tables.greedy_texts(result)]
    return [*blocks, "### Where it comes from", *tables.provenance(result)]


def _draw(result: ServingResult | KernelsResult, folder: Path, plots_folder: str) -> dict[str, str]:
    if result.kind == "kernels":
        if all(row.error for row in result.rows):
            return {}
        name = f"{plots_folder}/{_file_name(result.id)}-kernels.png"
        kernels_plot(result, folder / name)
        return {"kernels": name}
    names = {which: f"{plots_folder}/{_file_name(result.id)}-{which}.png" for which in summary.messages_of(result)}
    base = summary.base_of(result)
    if "capacity" in names:
        plots.capacity_plot(summary.capacities(result), base, folder / names["capacity"])
    if "decode" in names:
        accuracy = {name: record or NOT_SHOWN for name, record in summary.accuracies(result).items()}
        plots.decode_rate_plot(summary.shown_rates(result), base, accuracy, folder / names["decode"])
    if "accuracy" in names:
        report_accuracy.plot({row.profile: row.accuracy for row in result.rows}, folder / names["accuracy"])
    if "start" in names:
        plots.start_plot(summary.starts(result), folder / names["start"])
    return names


def _file_name(identity: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", identity).lstrip(".")
