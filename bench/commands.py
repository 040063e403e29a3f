"""`fp8-sinks bench report`, `keep`, `compare` and `export`: what is made from result files alone."""

from pathlib import Path

import click

from bench import kinds
from bench.engine import compare as engine_compare
from bench.record.files import write_text
from bench.report import document
from bench.serving import compare, export
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing

FOLDER = click.Path(path_type=Path, file_okay=False)


def write_report(folder: Path) -> Path:
    """Write the report of a run folder into it, and return its path."""
    (section,) = kinds.sections([folder / "result.json"])
    return document.write_run(section, folder)


@click.command("report")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=FOLDER, default=".", show_default=True, help="Folder for the report.")
@click.option("--name", default="BENCHMARK_RESULTS.md", show_default=True)
@click.option("--plots", default="plots", show_default=True, help="Folder inside --out; details go to its parent.")
@click.option("--glance", type=click.Path(path_type=Path, dir_okay=False), help="Renew the table and plot in FILE.")
def report_command(paths, out, name, plots, glance):
    """Write one page, details and plots from result files, run folders or folders of result files alone."""
    sources = [kinds.file_of(path) for path in paths]
    files = [file for path in sources for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not files:
        message = f"no result files in {', '.join(map(str, paths))}"
        raise Problem("file", message, "run a bench, then: fp8-sinks bench keep RUN")
    sections = kinds.sections(files)
    click.echo(document.write(sections, out, name, Path(plots)))
    if glance:
        click.echo(document.write_glance(sections, glance, out / plots))


@click.command("keep")
@click.argument("run", type=FOLDER)
@click.option("--results", "folder", type=FOLDER, default="results", show_default=True)
def keep_command(run, folder):
    """Copy a run's result into results/, named by its id, where `make report` reads it."""
    result = kinds.read(run)
    if any(getattr(row, "left_out", []) for row in result.rows):
        message = f"{run} is a quick run; kept, it would stand for a whole one"
        raise Problem("file", message, "run the bench without --quick")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{result.kind}-{result.id}.json"
    if target.exists() and _identity(kinds.read(target)) != _identity(result):
        message = f"{target} holds another run with the same id"
        raise Problem("file", message, "name another folder with --results, or rename that file first")
    text = kinds.file_of(run).read_text(encoding="utf-8")
    with writing(folder):
        write_text(text, target)
    click.echo(target)


@click.command("compare")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--force", is_flag=True, help="Compare what differs in more than the KV cache and its decoder, marked as such."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare_command(a, b, force, as_json):
    """Compare profiles of result files: ratios B over A, with their noise and the accuracy records.

    A and B are result files or run folders, whose profiles of the same name are paired, or FILE:PROFILE. Of two engine
    results the variants' ratios to stock BF16 are compared, each of its own piece.
    """
    results = [kinds.read(Path(path)) for path in (a, b) if Path(path).exists()]
    if [result.kind for result in results] == ["engine", "engine"]:
        click.echo(engine_compare.compare(*results, force=force, as_json=as_json))
        return
    click.echo(compare.compare(a, b, kinds.read, force=force, as_json=as_json))


@click.command("export")
@click.argument("path", metavar="RESULT", type=click.Path(path_type=Path))
@click.option("--csv", "as_csv", is_flag=True, help="A line per profile and point, with its accuracy.")
@click.option("--vllm", "as_vllm", is_flag=True, help="JSON lines as `vllm bench serve --append-result` writes them.")
def export_command(path, as_csv, as_vllm):
    """Print a serving result, a result file or a run folder, in a format of other tools."""
    if as_csv == as_vllm:
        raise click.UsageError("give one of --csv and --vllm")
    text, left_out = export.export(kinds.read(path), as_vllm)
    click.echo(text, nl=False)
    for line in left_out:
        click.echo(line, err=True)


def _identity(result) -> tuple:
    """What two files of one run have in common."""
    return result.id, result.provenance.created, result.provenance.git_commit
