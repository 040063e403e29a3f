"""The frame of a report: page, details, README table, which plots, which runs; one smoke test writes real PNGs."""

import re
import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench import kinds
from bench.record.files import write
from bench.report import document
from bench.report.document import GLANCE_END, GLANCE_NOTE, GLANCE_START, Section
from flashinfer_patches.errors import Problem
from kernels_tests.bench.kernels.samples import a_kernels_result, fa2_rows, our_rows
from kernels_tests.bench.report.reading import tables
from kernels_tests.bench.samples import a_result, a_row, two_profiles
from vllm_launch.redaction import REPO


def a_section(identity="a", subject="m on x", day=1, on_cpu=False, plot=True, **changes) -> Section:
    source = a_result(gpu=not on_cpu).provenance.model_copy(update={"created": datetime(2026, 7, day, tzinfo=UTC)})
    section = Section(
        id=identity,
        source=source,
        subject=subject,
        page=[f"page of {identity}"],
        not_measured=[],
        details=[f"details of {identity}"],
        glance=[[subject, identity, "pass", "2.00x", "9"]],
        draw=(lambda path: path.write_bytes(b"drawn")) if plot else None,
    )
    return section._replace(**changes)


def write_page(sections, folder, plots="plots") -> Path:
    return document.write(sections, folder, "BENCHMARK_RESULTS.md", Path(plots))


def page_of(*sections) -> list[str]:
    return document.page(list(sections), Path("results/plots"))


def files(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def png_chunks(content: bytes) -> list[str]:
    """The types of a PNG's chunks; each is its length, type, data and checksum after a signature of 8 bytes."""
    types, start = [], 8
    while start < len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        types.append(kind.decode("ascii"))
        start += 12 + length
    return types


def test_page_details_and_plots_lie_where_their_links_point(tmp_path):
    path = write_page([a_section()], tmp_path, "results/plots")
    assert set(files(tmp_path)) == {"BENCHMARK_RESULTS.md", "results/a.md", "results/plots/a.png"}
    page, details = path.read_text(), (tmp_path / "results/a.md").read_text()
    assert "](results/plots/a.png)" in page and "](results/a.md)" in page and "details of a" not in page
    assert "](plots/a.png)" in details and "page of a" in details and "details of a" in details


def test_the_report_of_a_run_holds_page_and_details(tmp_path):
    path = document.write_run(a_section(not_measured=["fp8: all rates"]), tmp_path)
    assert set(files(tmp_path)) == {"report.md", "plots/a.png"} and path.name == "report.md"
    texts = (document.NOTE, "page of a", "- fp8: all rates", "details of a", "](plots/a.png)", "## Provenance")
    assert all(text in path.read_text() for text in texts)


def test_the_page_shows_gpus_before_cpus_and_at_most_three_plots():
    order = [a_section("cpu", "m on a CPU", on_cpu=True), *(a_section(name, f"m on {name}") for name in "abc")]
    text = "\n".join(page_of(*order))
    assert [line for line in text.splitlines() if line.startswith("page of")] == [
        "page of a",
        "page of b",
        "page of c",
        "page of cpu",
    ]
    assert text.count("![") == 3 and "cpu.png" not in text


def test_an_earlier_run_of_a_subject_is_a_link_alone():
    sections = [a_section("earlier", day=1), a_section("newest", day=2), a_section("other", "m on y", day=1)]
    text = "\n".join(page_of(*sections))
    assert "page of newest" in text and "page of other" in text and "page of earlier" not in text
    assert "Details: [2026-07-02](results/newest.md), [2026-07-01](results/earlier.md)" in text
    assert text.count("earlier.md") == 1


def test_missing_measurements_are_listed_with_their_subject():
    blocks = page_of(a_section(not_measured=["fp8: all rates"]), a_section("b", "m on y"))
    assert blocks[-1] == "## Not measured\n\n- m on x: fp8: all rates"
    assert not any("Not measured" in block for block in page_of(a_section()))


def test_two_results_of_an_id_are_refused_and_an_id_is_a_safe_file_name(tmp_path):
    with pytest.raises(Problem) as refused:
        write_page([a_section(), a_section(subject="m on y")], tmp_path)
    assert refused.value.kind == "file" and not files(tmp_path)
    write_page([a_section("../a b")], tmp_path / "out")
    assert set(files(tmp_path)) == {f"out/{name}" for name in ("BENCHMARK_RESULTS.md", "-a-b.md", "plots/-a-b.png")}


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path):
    (tmp_path / "file").touch()
    for write_report in (
        lambda path: write_page([a_section()], path),
        lambda p: document.write_run(a_section(), p),
    ):
        with pytest.raises(Problem) as problem:
            write_report(tmp_path / "file")
        assert problem.value.kind == "disk"


def test_the_glance_is_a_table_of_the_newest_results_between_the_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n\n{GLANCE_START}\nstale lines\n{GLANCE_END}\n\nafter\n")
    sections = [a_section("earlier", day=1), a_section("newest", day=2), a_section("other", "m on y", day=1)]
    document.write_glance(sections, readme, tmp_path / "plots")
    first = readme.read_text()
    assert first.startswith(f"before\n\n{GLANCE_START}\n\n|") and first.endswith(f"\n\n{GLANCE_END}\n\nafter\n")
    assert GLANCE_NOTE in first and "![" not in first
    (table,) = tables(first)
    assert [tuple(row.values()) for row in table] == [
        ("m on x", "newest", "pass", "2.00x", "9"),
        ("m on y", "other", "pass", "2.00x", "9"),
    ]
    document.write_glance(sections, readme, tmp_path / "plots")
    assert readme.read_text() == first


def test_the_glance_has_a_single_plot_by_a_path_from_its_file(tmp_path):
    readme = tmp_path / "docs" / "README.md"
    readme.parent.mkdir()
    readme.write_text(f"{GLANCE_START}\n{GLANCE_END}\n")
    sections = [a_section("accuracy", "m on x"), a_section("earlier", "k", glance_plot=True)]
    sections += [a_section("ours", "k", day=2, glance_plot=True), a_section("theirs", "k on y", glance_plot=True)]
    document.write_glance(sections, readme, tmp_path / "results/plots")
    assert re.findall(r"!\[.*", readme.read_text()) == ["![k](../results/plots/ours.png)"]
    document.write_glance([a_section("ours", plot=False, glance_plot=True)], readme, tmp_path)
    assert "![" not in readme.read_text()


@pytest.mark.parametrize("text", [None, "no markers\n", f"{GLANCE_START}\n", f"{GLANCE_END}{GLANCE_START * 2}"])
def test_the_glance_needs_its_markers(tmp_path, text):
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    with pytest.raises(Problem) as problem:
        document.write_glance([a_section()], tmp_path / "README.md", tmp_path)
    assert problem.value.kind == "file"


def test_the_report_does_not_depend_on_the_order_of_files(tmp_path):
    """The smoke test: real sections, real PNGs; nothing of this machine in it."""
    results = {"a": a_kernels_result(*fa2_rows(), *our_rows()), "b": two_profiles()}
    results["c"] = a_result(a_row(), a_row("fp8", "fp8"), identity="later", day=2, gpu=True)
    for name, result in results.items():
        write(result, tmp_path / f"{name}.json")
    for folder, order in (("one", "abc"), ("two", "cba")):
        write_page(kinds.sections([tmp_path / f"{name}.json" for name in order]), tmp_path / folder)
    written = files(tmp_path / "one")
    assert written == files(tmp_path / "two")
    for result in results.values():
        assert written[f"plots/{result.id}.png"].startswith(b"\x89PNG") and f"{result.id}.md" in written
        assert len(written[f"plots/{result.id}.png"]) < 100_000
    page = written["BENCHMARK_RESULTS.md"].decode()
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == [
        "## tiny_gpt_oss on NVIDIA H200, vLLM 0.26.0, 2026-07-02",
        "## Decode kernels on NVIDIA H200, FlashInfer 0.6.14, 2026-07-02",
        "## tiny_gpt_oss on a CPU, Some(R) Processor @ 2.70GHz, vLLM 0.32.0 for CPU, 2026-07-01",
    ]
    texts = [content.decode() for name, content in written.items() if name.endswith(".md")]
    assert not any(str(tmp_path) in text or "/somewhere" in text for text in texts)
    assert all(tables(text) for text in texts)
    for result in results.values():  # neither a date nor a version of the software
        assert set(png_chunks(written[f"plots/{result.id}.png"])) == {"IHDR", "PLTE", "IDAT", "IEND"}


def test_the_committed_report_follows_from_its_results(tmp_path):
    """BENCHMARK_RESULTS.md, the details and the README's table, byte for byte."""
    sections = kinds.sections(sorted((REPO / "results").glob("*.json")))
    write_page(sections, tmp_path, "results/plots")
    for path in tmp_path.rglob("*.md"):
        assert path.read_bytes() == (REPO / path.relative_to(tmp_path)).read_bytes(), "run: make report"
    for pattern in ("results/*.md", "results/plots/*"):
        assert [path.name for path in sorted(tmp_path.glob(pattern))] == [
            path.name for path in sorted(REPO.glob(pattern))
        ]
    assert len((REPO / "BENCHMARK_RESULTS.md").read_text().splitlines()) < 120
    readme = tmp_path / "README.md"
    readme.write_bytes((REPO / "README.md").read_bytes())
    document.write_glance(sections, readme, tmp_path / "results/plots")
    assert readme.read_bytes() == (REPO / "README.md").read_bytes(), "run: make report"
