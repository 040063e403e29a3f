"""What the report says of accuracy: the first screen, what failed, every context, and the plot."""

import re

from bench.accuracy import section as report
from kernels_tests.bench.samples import a_match, a_record, a_row, a_sink_check

NOT_RUN = a_sink_check(
    status="not run", reason="transformers in FP32 needs 491.0 GiB | 22.0 GiB free", mean_abs_delta={}
)


def rows(**of_fp8):
    return [a_row(accuracy=a_record(0.006, 0.02)), a_row("fp8", "fp8", accuracy=a_record(**of_fp8))]


def cells(table: str) -> dict[str, list[str]]:
    """First column -> the others, of a Markdown table."""
    lines = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in table.splitlines()]
    return {line[0].replace("\\", ""): line[1:] for line in lines if len(line) > 1}


def test_the_first_screen_answers_whether_fp8_answers_the_same_and_what_it_costs():
    sentence, table, note = report.first_screen(rows())
    assert sentence.startswith("- Accuracy of fp8: pass (5 gates); over 6,144 given tokens")
    assert "same token most likely as baseline at 95.0%" in sentence and "by 0.100 nats" in sentence
    assert "1.002 times the perplexity" in sentence
    found = cells(table)
    assert found["Gates"] == ["pass (5 gates)", "pass (5 gates)"]
    assert found["Decode: mean |delta log p|, nats"] == ["0.006 (0.005 to 0.007)", "0.100 (0.090 to 0.110)"]
    assert found["Decode: KL, nats a token"][1] == "0.007 (0.0063 to 0.0077)"
    assert found["Decode: top-1 agreement"][1] == "95.00% (94.00% to 96.00%)"
    assert "Decode: perplexity ratio" in found and "Prefill: mean |delta log p|, nats" in found
    assert found["Decode against its own prefill: mean |delta log p|, nats"][1].startswith("0.010")
    assert found["Sink check"][1] == "passed: true 0.090, nearest wrong 0.830"
    assert "128 to 3,960 tokens of context" in note and "correlated" in note


def test_the_first_screen_says_what_greedy_match_cannot():
    row = a_row("fp8", "fp8", accuracy=a_record(), greedy=[a_match()])
    note = report.first_screen([row])[-1]
    assert "Greedy match cannot judge a cache format alone" in note and "Smallest margin here: 3.84 nats" in note


def test_a_failed_gate_stands_in_its_place_with_its_bound():
    failing = rows(delta=0.11, sinks=a_sink_check(status="FAILED"))
    assert "**FAILED (1 of 5 gates and the sinks)**" in report.first_screen(failing)[1]
    (block,) = report.failed(failing)
    assert block.startswith("**FAILED**: fp8 against baseline")
    assert "- decode, 3,960 tokens of context: mean \\|delta log p\\| 0.132, at most 0.125" in block
    assert "- sinks: FAILED: true 0.090" in block and "128 tokens of context" not in block
    assert report.failed(rows()) == []


def test_a_model_without_thresholds_is_measured_but_not_judged():
    one = rows(bound=None, delta=1.5)
    assert cells(report.first_screen(one)[1])["Gates"][1] == "not judged (this model has no thresholds)"
    assert report.failed(one) == []


def test_a_check_that_did_not_run_gives_its_reason():
    one = rows(sinks=NOT_RUN)
    reason = "not run: transformers in FP32 needs 491.0 GiB \\| 22.0 GiB free"
    assert cells(report.first_screen(one)[1])["Sink check"][1] == reason
    assert f"Sink check: {reason}" in report.details(one) and report.verdict(one[1].accuracy) == "pass (5 gates)"


def test_rows_without_a_record_say_so_and_a_result_without_any_has_no_block():
    mixed = [a_row(accuracy=None), a_row("fp8", "fp8", accuracy=a_record())]
    assert cells(report.first_screen(mixed)[1])["Gates"] == ["no record", "pass (5 gates)"]
    assert "**baseline**: no accuracy record" in report.details(mixed)
    assert report.first_screen([a_row(accuracy=None), a_row("fp8", "fp8")]) == []


def test_every_context_and_gate_is_in_the_details():
    blocks = "\n".join(report.details(rows(delta=0.11)))
    assert "| 3,960 | decode | 2,048 in 16 | 0.132 (0.119 to 0.145) |" in blocks
    assert blocks.count("| prefill |") == 6
    assert "| **FAILED** | decode, 3,960 tokens of context: mean \\|delta log p\\| 0.132, at most 0.125 |" in blocks
    assert "**baseline** against itself" in blocks


def test_the_plot_is_the_same_each_time_and_shows_every_profile(tmp_path):
    records = {row.profile: row.accuracy for row in rows()} | {"fp8-skip-sliding": None}
    for name in ("a.png", "b.png"):
        report.plot(records, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert report.message(records) == ("Accuracy: fp8 0.100 nats from baseline after 128 tokens, 0.120 after 3,960")


def test_the_plot_of_a_single_context_without_prefill_and_intervals(tmp_path):
    record = a_record(contexts=(128,), bound=None, prefill=None)
    bare = [one.model_copy(update={"prefill": None}) for one in record.contexts]
    report.plot({"fp8": record.model_copy(update={"contexts": bare})}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
