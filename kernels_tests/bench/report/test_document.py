"""The report: what it shows, what it refuses to show, and that the same files give the same bytes."""

from itertools import pairwise

import pytest

from bench.record.files import write
from bench.report import document
from bench.servers.result import Failure
from bench.serving import section as summary
from bench.serving.result import ServingResult
from flashinfer_patches.errors import Problem
from kernels_tests.bench.samples import a_match, a_rate, a_record, a_result, a_row, rates_around, two_profiles
from vllm_launch.provenance import REPO


def text_of(result: ServingResult) -> str:
    return document.markdown([result], {})


def line_with(text: str, start: str) -> str:
    """The one line that starts so."""
    (found,) = [line for line in text.splitlines() if line.startswith(start)]
    return found


def test_first_screen_answers_the_four_questions():
    screen = text_of(two_profiles()).partition("### ")[0]
    assert "## tiny_gpt_oss on a CPU, Some(R) Processor @ 2.70GHz, vLLM 0.32.0 for CPU, 2026-07-01" in screen
    assert "pass: 32/32, 32/32, 32/32 tokens equal to baseline's; smallest margin 3.84 nats" in screen
    assert line_with(screen, "| KV capacity") == "| KV capacity, tokens | 671,088 | 1,342,177 (2.00x) |"
    assert "\n| Decode at 288 tokens, tokens/s | 510 | 510 (1.00x ± 0.06) |\n" in screen
    assert "\n| Server start, cold / warm, s | 21.4 / 20.9 | 21.4 / 20.9 |\n" in screen


def test_same_files_give_the_same_bytes_in_any_order(tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    write(two_profiles(), files[0])
    write(a_result(a_row(), a_row("fp8", "fp8"), identity="later", day=2, gpu=True), files[1])
    written = []
    for folder, order in (("one", files), ("two", files[::-1])):
        document.write(order, tmp_path / folder)
        found = sorted(path for path in (tmp_path / folder).rglob("*") if path.is_file())
        written.append({path.relative_to(tmp_path / folder).as_posix(): path.read_bytes() for path in found})
    assert written[0] == written[1]
    which = ("accuracy", "capacity", "decode", "start")
    names = {f"plots/{one}-{plot}.png" for one in ("20260701-120000", "later") for plot in which}
    assert set(written[0]) == {"BENCHMARK_RESULTS.md", *names}
    text = written[0]["BENCHMARK_RESULTS.md"].decode()
    assert text.index("NVIDIA H200") < text.index("Some(R) Processor")
    assert all(f"]({name})" in text for name in names)
    assert str(tmp_path) not in text and "/somewhere" not in text


def test_other_samples_give_other_bytes(tmp_path):
    for name, middle in (("one", 500.0), ("two", 501.0)):
        write(two_profiles(rates=rates_around(middle, seed=1)), tmp_path / f"{name}.json")
        document.write([tmp_path / f"{name}.json"], tmp_path / name)
    plot = "plots/20260701-120000-decode.png"
    assert (tmp_path / "one" / plot).read_bytes() != (tmp_path / "two" / plot).read_bytes()


def test_plots_carry_no_date_and_no_version(tmp_path):
    write(two_profiles(), tmp_path / "a.json")
    document.write([tmp_path / "a.json"], tmp_path)
    for path in tmp_path.glob("plots/*.png"):
        assert not any(chunk in path.read_bytes() for chunk in (b"tEXt", b"iTXt", b"tIME"))


SECRET = [a_rate(0, decode=[7654.0, 7654.5, 7655.0])]


def test_speed_without_accuracy_is_not_shown(tmp_path):
    hidden = two_profiles(rates=SECRET, greedy=[])
    text = text_of(hidden)
    assert line_with(text, "| Decode at 288 ").endswith("| 510 | not shown: no accuracy record |")
    assert "**fp8**: not shown: no accuracy record" in text
    assert "Missing for fp8:** accuracy record" in text
    assert "765" not in text.replace(",", "")
    assert "7,65" in text_of(two_profiles(rates=SECRET))


def test_speed_without_accuracy_is_not_plotted(tmp_path):
    plotted = []
    for name, decode in (("one", 7654.0), ("two", 77.0)):
        write(two_profiles(rates=[a_rate(decode=[decode])], greedy=[]), tmp_path / f"{name}.json")
        document.write([tmp_path / f"{name}.json"], tmp_path / name)
        plotted.append((tmp_path / name / "plots/20260701-120000-decode.png").read_bytes())
    assert plotted[0] == plotted[1]


@pytest.mark.parametrize("kv", ["auto", "fp8"])
def test_a_lone_profile_shows_its_speed_beside_its_record_alone(tmp_path, kv):
    bare = a_result(a_row("mine", kv, greedy=[], accuracy=None, rates=SECRET))
    write(bare, tmp_path / "a.json")
    text = document.write([tmp_path / "a.json"], tmp_path).read_text()
    assert "| Answers | no record |" in text and "Missing for mine:** accuracy record" in text
    assert "not shown: no accuracy record" in text and "765" not in text.replace(",", "")
    assert not list(tmp_path.glob("plots/*-decode.png"))
    own = text_of(a_result(a_row("mine", kv, greedy=[], accuracy=a_record(0.006, reference="mine"), rates=SECRET)))
    assert "| Answers | reference: 0.006 nats from itself |" in own and "7,65" in own


def test_a_baseline_that_nothing_was_compared_with_has_no_speed_beside_a_profile_that_has():
    base = a_row(accuracy=None, rates=SECRET)
    text = text_of(a_result(base, a_row("fp8", "fp8", greedy=[], accuracy=None)))
    assert "| Answers | no record | no record |" in text and "765" not in text.replace(",", "")
    beside = text_of(a_result(base, a_row("fp8", "fp8")))
    assert line_with(beside, "| Decode at 288 ").endswith("| not shown: no accuracy record | 510 |")
    assert "765" not in beside.replace(",", "")


def test_a_lone_profile_that_was_compared_shows_its_speed():
    text = text_of(a_result(a_row("fp8", "fp8")))
    assert "tokens equal to baseline's" in text
    assert line_with(text, "| Decode at 288 ").endswith("| 510 |")


def test_failed_gate_shows_both_texts_side_by_side():
    text = text_of(two_profiles(greedy=[a_match(), a_match(passed=False)]))
    screen = text.partition("### ")[0]
    assert "**FAILED: 32/32, 3/32** tokens equal to baseline's" in screen
    assert "**FAILED**: fp8 after ` The capital of France is `, 3 of 32 tokens equal, 4 distinct" in screen
    assert line_with(screen, "| Answers").endswith("| reference: 0.006 nats from itself | **FAILED: 32/32, 3/32** |")
    # Within a table a bar must be escaped, a line end cannot be; elsewhere a backslash would be printed.
    assert r"| ``  Paris. The city has\ntwo \| three `museums`. `` | `  London, London, London ` |" in screen
    assert r"has\ntwo | three `museums`" in text.partition("### Greedy answers")[2]
    assert "FAILED" not in text_of(two_profiles())


def test_a_widened_cache_has_no_decode_ratio():
    row = a_row("fp8", "fp8", rates=[a_rate(0, decode=[255.0, 250.0, 260.0])])
    widened = row.model_copy(update={"resolved": row.resolved.model_copy(update={"cpu_attention": "widened"})})
    result = a_result(a_row(), widened)
    assert summary.messages_of(result)["decode"].endswith(f"; fp8 {summary.WIDENED}")
    text = text_of(result)
    assert line_with(text, "| Decode at 288 ").endswith("| 510 | 255 |")
    assert line_with(text, "| KV cache dtype, resolved").endswith("fp8_e4m3, widened for a kernel without FP8 |")
    assert "0.50x" not in text and "0.50x" in text_of(a_result(a_row(), row))
    alone = a_result(widened)
    assert summary.messages_of(alone)["decode"] == "Decode rate (tokens/s): fp8 255"


def test_an_unfinished_run_says_what_failed_and_what_is_missing(tmp_path):
    message = "the server ended with exit code 1; its log:\n  | out of ```memory```"
    failed = a_row(
        "fp8",
        "fp8",
        resolved=None,
        starts=[],
        wiped=None,
        completion=None,
        rates=[],
        greedy=[],
        failures=[Failure(step="fp8", message=message)],
    )
    result = a_result(a_row(), failed)
    text = text_of(result)
    missing = "cold start, warm start, resolved settings, accuracy record, all rates"
    assert f"- **Missing for fp8:** {missing}" in text
    assert "**Failed, fp8, step fp8:**\n\n````text\nthe server ended with exit code 1" in text
    assert line_with(text, "| KV capacity, tokens |").endswith("| 671,088 | not known |")
    assert line_with(text, "| attention backend, resolved").endswith("| CPU_ATTN | not read back |")
    assert line_with(text, "| Decode at 288 ").endswith("| 510 | not measured |")
    assert line_with(text, "| Server start").endswith("| 21.4 / 20.9 | - / - |")
    write(result, tmp_path / "a.json")
    assert document.write([tmp_path / "a.json"], tmp_path, name="report.md").exists()
    assert len(list(tmp_path.glob("plots/*.png"))) == 4


def test_a_run_without_anything_still_reports(tmp_path):
    nothing = {"resolved": None, "starts": [], "wiped": None, "completion": None, "rates": [], "accuracy": None}
    write(a_result(a_row(**nothing)), tmp_path / "a.json")
    text = document.write([tmp_path / "a.json"], tmp_path).read_text()
    assert "### Starts" not in text and "![" not in text and "Decode at" not in text
    assert not list(tmp_path.glob("plots/*"))


def test_points_that_were_not_reached_are_counted():
    text = text_of(two_profiles(rates=[a_rate(0)]))
    assert "- **Missing for fp8:** rates at 1 of 2 points" in text
    assert line_with(text, "| Decode at 1,312 ").endswith("| 510 | not measured |")


def test_only_a_cpu_carries_the_note_on_speed():
    rows = (a_row(), a_row("fp8", "fp8"))
    assert summary.CPU_NOTE in text_of(a_result(*rows))
    assert summary.CPU_NOTE not in text_of(a_result(*rows, gpu=True))


def test_requested_beside_resolved_and_commands():
    text = text_of(two_profiles())
    assert "| KV cache dtype, requested | auto | fp8 |" in text
    assert "| KV cache dtype, resolved | bfloat16 | fp8_e4m3 |" in text
    assert "| rounding CPU cache writer | no | yes |" in text
    assert "| baseline | cold | 21.4 | 0.31 | 214 files, 29.6 MiB |" in text
    assert "| commit | 0123abc with changes |" in text
    assert "  $ENV/bin/python -m vllm.entrypoints.openai.api_server \\\n  --model $REPO/models/tiny" in text
    assert """--hf-overrides '{"model_type":"tiny_gpt_oss"}'""" in text


def test_tables_are_whole():
    lines = text_of(two_profiles(greedy=[a_match(passed=False)])).splitlines()
    for above, below in pairwise(lines):
        if above.startswith("|") and below.startswith("|"):
            bars = [line.replace(r"\|", "").count("|") for line in (above, below)]
            assert bars[0] == bars[1] <= 9, (above, below)


def test_the_same_result_twice_is_refused(tmp_path):
    write(two_profiles(), tmp_path / "a.json")
    with pytest.raises(Problem, match="two results have the id 20260701-120000"):
        document.write([tmp_path / "a.json", tmp_path / "a.json"], tmp_path)


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path):
    write(two_profiles(), tmp_path / "a.json")
    with pytest.raises(Problem, match="cannot write the report"):
        document.write([tmp_path / "a.json"], tmp_path / "a.json")


def test_glance_renews_only_what_is_between_the_markers(tmp_path):
    write(a_result(*two_profiles().rows), tmp_path / "a.json")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n\n{document.GLANCE_BEGIN}\nstale lines\n{document.GLANCE_END}\n\nafter\n")
    document.write_glance([tmp_path / "a.json"], readme)
    first = readme.read_text()
    assert first.startswith("before\n") and first.endswith("\nafter\n")
    assert "stale lines" not in first and "holds 2.00x the tokens" in first
    document.write_glance([tmp_path / "a.json"], readme)
    assert readme.read_text() == first


def test_of_two_runs_alike_the_earlier_is_told_as_such_and_not_at_a_glance(tmp_path):
    files = [tmp_path / f"{name}.json" for name in ("old", "new", "other")]
    write(a_result(a_row(), a_row("fp8", "fp8"), identity="old", day=1), files[0])
    write(a_result(a_row(), a_row("fp8", "fp8"), identity="new", day=2), files[1])
    write(a_result(a_row(), a_row("fp8", "fp8"), identity="other", day=1, gpu=True), files[2])
    document.write(files, tmp_path)
    headings = [line for line in (tmp_path / "BENCHMARK_RESULTS.md").read_text().splitlines() if line[:3] == "## "]
    assert [line.endswith(", an earlier run") for line in headings] == [False, False, True]
    readme = tmp_path / "README.md"
    readme.write_text(f"{document.GLANCE_BEGIN}\n{document.GLANCE_END}\n")
    document.write_glance(files, readme)
    assert "2026-07-02" in readme.read_text() and readme.read_text().count("2026-07-01") == 1


def test_glance_needs_its_markers(tmp_path):
    write(a_result(*two_profiles().rows), tmp_path / "a.json")
    (tmp_path / "README.md").write_text("no place\n")
    with pytest.raises(Problem, match="no place for the results"):
        document.write_glance([tmp_path / "a.json"], tmp_path / "README.md")


def test_the_committed_report_is_what_its_results_give(tmp_path):
    """BENCHMARK_RESULTS.md, its plots and the README's results, byte for byte."""
    results = sorted((REPO / "results").glob("*.json"))
    made = document.write(results, tmp_path, plots_folder="results/plots")
    assert made.read_bytes() == (REPO / "BENCHMARK_RESULTS.md").read_bytes(), "run: make report"
    names = {path.name for path in (tmp_path / "results" / "plots").iterdir()}
    assert names == {path.name for path in (REPO / "results" / "plots").iterdir()}
    readme = tmp_path / "README.md"
    readme.write_bytes((REPO / "README.md").read_bytes())
    document.write_glance(results, readme)
    assert readme.read_bytes() == (REPO / "README.md").read_bytes(), "run: make report"


@pytest.mark.parametrize("delta", [0.05, 0.3])
def test_a_reference_that_misses_its_own_gates_takes_the_worth_from_every_comparison(delta):
    own = a_record(delta, reference="baseline")
    text = text_of(a_result(a_row(accuracy=own), a_row("fp8", "fp8", accuracy=a_record(0.3))))
    failed = delta > 0.125
    assert ("- **Reference:** baseline **misses its own gates**: how far" in text) is failed
    assert ("| Answers | **FAILED: the reference misses its own gates, 0.300 nats from itself** |" in text) is failed
