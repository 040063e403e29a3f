"""What a report states of a serving result: speeds beside accuracy alone, ratios, starts, what is missing."""

from pathlib import Path

import pytest

from bench.accuracy import plot as accuracy_plot
from bench.accuracy.tables import REFERENCE_FAILED, answers
from bench.record import noise
from bench.report import document
from bench.report.numbers import ratio_cell
from bench.servers.result import Start
from bench.serving import plot, section, tables
from bench.serving.load.rate import Attempt
from bench.serving.result import ServingResult
from bench.suite import Grid
from kernels_tests.bench.report.reading import error_lines, row
from kernels_tests.bench.report.reading import tables as tables_of
from kernels_tests.bench.samples import (
    a_match,
    a_rate,
    a_record,
    a_result,
    a_row,
    rates_around,
    two_profiles,
)

SHORTEST, LONGEST, START = "decode at 288 tokens", "decode at 1,312 tokens", "start, cold / warm, s"
OVER = "decode over baseline"
SECRET = [a_rate(0, decode=[7654.0, 7654.5, 7655.0])]


def text_of(result: ServingResult) -> str:
    """Page, details and title, as they are written."""
    part = section.section(result)
    cells = [cell for line in part.glance for cell in line]
    return "\n\n".join([*document.page([part], Path("plots")), *part.details, *cells])


def rates_of(text: str) -> list[dict[str, str]]:
    """Rows of the table of all rates."""
    return [cells for table in tables_of(text) for cells in table if OVER in cells]


def shows_the_secret(result: ServingResult) -> bool:
    return "765" in text_of(result).replace(",", "")


def test_a_row_per_profile_has_answers_capacity_rates_and_starts():
    text = text_of(two_profiles())
    assert row(text, "baseline") == {
        "profile": "baseline",
        "answers": "reference, mean |Δ log p| 0.006",
        "KV capacity, tokens": "671,088",
        SHORTEST: "510 tokens/s",
        LONGEST: "510 tokens/s",
        START: "21.4 / 20.9",
    }
    fp8 = row(text, "fp8")
    assert (fp8["answers"], fp8["KV capacity, tokens"]) == ("pass, greedy 32/32 32/32 32/32", "1,342,177 (2.00x)")
    assert fp8[SHORTEST] == "510 tokens/s, 1.00x ± 0.06 (noise)"


def test_the_page_has_the_shortest_and_the_longest_context_of_the_fewest_requests():
    rates = [
        a_rate(depth, concurrency, output) for depth in (0, 512, 1024) for concurrency in (1, 8) for output in (32, 64)
    ]
    points = tables.page_points([a_row(rates=rates)])
    assert [(each.context, each.concurrency, each.output) for each in points] == [(288, 1, 64), (1312, 1, 64)]
    assert len(tables.page_points([a_row(rates=rates[:1])])) == 1 and tables.page_points([a_row(rates=[])]) == []


def test_ratios_are_to_the_reference_wherever_it_stands():
    faster = [a_rate(0), a_rate(1024, decode=[605.0, 612.0, 620.0])]
    result = a_result(a_row("fp8", "fp8", rates=faster), a_row())
    assert row(text_of(result), "fp8")[LONGEST] == "612 tokens/s, **1.20x ± 0.07, faster**"
    assert row(text_of(result), "baseline")[LONGEST] == "510 tokens/s"
    slower = a_result(a_row(rates=faster), a_row("fp8", "fp8"))
    assert row(text_of(slower), "fp8")[LONGEST] == "510 tokens/s, **0.83x ± 0.05, slower**"


@pytest.mark.parametrize(
    ("base", "samples", "ending"),
    [([100.0, 300.0, 500.0], [63.0, 190.0, 320.0], "(noise)"), ([500.0], [600.0], noise.NOT_KNOWN)],
)
def test_a_ratio_that_is_hardly_known_is_no_comparison_anywhere(base, samples, ending):
    result = a_result(a_row(rates=[a_rate(decode=base)]), a_row("fp8", "fp8", rates=[a_rate(decode=samples)]))
    (ratio,) = noise.ratios({0: samples}, {0: base}).values()
    assert row(text_of(result), "fp8")[SHORTEST].endswith(f"tokens/s, {ratio_cell(ratio)}")
    assert ratio_cell(ratio).endswith(ending)
    ((*_, speed),) = section.section(result).glance
    assert speed == row(text_of(result), "fp8")[SHORTEST]


@pytest.mark.parametrize("seed", range(5))
def test_every_ratio_is_that_of_the_samples(seed):
    first, second = rates_around(500, seed), rates_around(520, seed + 100)
    result = a_result(a_row(rates=first), a_row("fp8", "fp8", rates=second))
    expected = noise.ratios(tables.samples(second), tables.samples(first))
    assert tables.ratios(result.rows[1], result.rows[0]) == expected and len(expected) == 6
    text = "\n\n".join(tables.rate_table(result.rows, result.rows[0]))
    assert all(ratio_cell(ratio) in text for ratio in expected.values())


def test_speed_without_accuracy_is_shown_nowhere():
    hidden = two_profiles(rates=SECRET, greedy=[])
    assert row(text_of(hidden), "fp8")[SHORTEST] == tables.NOT_SHOWN and not shows_the_secret(hidden)
    assert section.section(hidden).not_measured == ["fp8: rates at 1 of 2 points, accuracy record"]
    assert [line[1] for line in section.section(hidden).glance] == ["baseline"]
    assert shows_the_secret(two_profiles(rates=SECRET))


@pytest.mark.parametrize("kv", ["auto", "fp8"])
def test_a_lone_profile_shows_its_speed_beside_its_record_alone(kv):
    bare = a_result(a_row("mine", kv, greedy=[], accuracy=None, rates=SECRET))
    assert row(text_of(bare), "mine")["answers"] == "no record" and not shows_the_secret(bare)
    assert section.section(bare).draw is None and section.section(bare).glance == []
    reference = a_result(a_row("mine", kv, greedy=[], accuracy=a_record(0.006, reference="mine"), rates=SECRET))
    assert shows_the_secret(reference) and section.section(reference).draw
    assert len(section.section(reference).glance) == 1
    assert row(text_of(a_result(a_row("fp8", "fp8"))), "fp8")[SHORTEST] == "510 tokens/s"


def test_a_baseline_without_a_record_has_no_speed_and_no_ratio_beside_a_profile_that_has():
    base = a_row(accuracy=None, rates=SECRET)
    assert not shows_the_secret(a_result(base, a_row("fp8", "fp8", greedy=[], accuracy=None)))
    beside = a_result(base, a_row("fp8", "fp8"))
    assert row(text_of(beside), "fp8")[SHORTEST] == "510 tokens/s" and not shows_the_secret(beside)


def widened_row(**changes):
    native = a_row("fp8", "fp8", **changes)
    return native.model_copy(update={"resolved": native.resolved.model_copy(update={"cpu_attention": "widened"})})


def test_a_widened_cache_has_no_decode_ratio():
    slow = [a_rate(0, decode=[255.0, 250.0, 260.0])]
    result = a_result(a_row(), widened_row(rates=slow))
    assert row(text_of(result), "fp8")[SHORTEST] == f"255 tokens/s, {tables.WIDENED}"
    assert "0.50x" not in text_of(result)
    assert "0.50x" in text_of(a_result(a_row(), a_row("fp8", "fp8", rates=slow)))


def test_an_unfinished_run_lists_missing_measurements():
    bare = a_row("fp8", "fp8", resolved=None, starts=[], rates=[], greedy=[])
    part = section.section(a_result(a_row(), bare))
    missing = "all rates, resolved settings, accuracy record"
    assert part.not_measured == [f"fp8: {missing}"]
    fp8 = row("\n\n".join(part.page), "fp8")
    assert (fp8["KV capacity, tokens"], fp8[SHORTEST], fp8[START]) == ("not known", "not measured", "- / -")
    assert section.section(two_profiles(rates=[a_rate(0)])).not_measured == ["fp8: rates at 1 of 2 points"]
    assert section.section(two_profiles()).not_measured == []


def test_points_of_the_grid_that_no_profile_has_are_missing():
    grid = Grid(prompt=[256], output=[64], depth=[0, 1024], concurrency=[1, 2], load_depth=[0], runs=3)
    complete = section.section(two_profiles().model_copy(update={"grid": grid.replaced({"concurrency": [1]})}))
    assert complete.not_measured == [] and section.UNFINISHED not in complete.page
    part = section.section(two_profiles().model_copy(update={"grid": grid}))
    assert part.not_measured == [f"{name}: rates at 1 of 3 points" for name in ("baseline", "fp8")]
    assert section.UNFINISHED in part.page


def test_a_failed_point_is_no_unfinished_run():
    grid = Grid(prompt=[256], output=[64], depth=[0, 1024], concurrency=[1], runs=3)
    failed = Attempt(depth=1024, prompt=256, output=64, concurrency=1, requests=[])
    result = a_result(a_row(rates=[a_rate(0)], unrated=[failed])).model_copy(update={"grid": grid})
    part = section.section(result)
    assert part.not_measured == ["baseline: rates at 1 of 2 points"] and section.UNFINISHED not in part.page


def test_a_run_without_anything_still_has_a_section():
    nothing = {"resolved": None, "starts": [], "wiped": None, "rates": [], "accuracy": None}
    part = section.section(a_result(a_row(**nothing)))
    assert part.draw is None and part.glance == [] and not any("decode at" in block for block in part.page)


def test_which_starts_have_a_time():
    cold, warm = a_row().starts
    scored = Start(cache="scored", start_s=7654.0, first_token_s=765.0)
    assert tables.timed(a_row(starts=[cold, warm, scored])) == [cold, warm]
    uncached = a_row(starts=[cold.model_copy(update={"cached_files": 0}), warm])
    assert tables.timed(uncached) == uncached.starts[:1]
    assert row(text_of(a_result(uncached)), "baseline")[START] == "21.4 / -"
    assert not shows_the_secret(two_profiles(starts=[cold, warm, scored]))


def test_only_a_cpu_carries_the_note_on_speed():
    rows = (a_row(), a_row("fp8", "fp8"))
    assert section.CPU_NOTE in section.section(a_result(*rows)).page
    assert section.CPU_NOTE not in section.section(a_result(*rows, gpu=True)).page


def test_the_busiest_minute_of_any_rate_is_the_load_of_the_run():
    rates = [a_rate(0).model_copy(update={"load_average": load}) for load in (2.0, 4.1)]
    result = two_profiles(rates=rates)
    assert section.highest_load(result) == 4.1 and "4.1" in section.section(result).page[-1]
    assert "Other work on the machine" in section.section(result).page[-1]


def test_all_rates_have_their_range():
    rows = two_profiles().rows
    text = "\n\n".join(tables.rate_table(rows, rows[0]))
    names = ("profile", "context", "depth", "prompt", OVER)
    assert [tuple(each[name] for name in names) for each in rates_of(text)] == [
        ("baseline", "288", "0", "256", "-"),
        ("baseline", "1,312", "1,024", "256", "-"),
        ("fp8", "288", "0", "256", "1.00x ± 0.06 (noise)"),
        ("fp8", "1,312", "1,024", "256", "1.00x ± 0.06 (noise)"),
    ]
    assert {each["answers"] for each in rates_of(text)} == {answers(each, rows[0]) for each in rows}
    rates = rates_of(text)[-1]
    assert rates["decode, tokens/s"] == "510 (500 to 520)" and rates["samples"] == "3"
    assert rates["prefill, tokens/s"] == "10,200 (10,000 to 10,400)"
    assert rates["first token, ms"] == "12.0 (12.0 to 12.0)"


def test_first_token_is_a_mean_over_the_requests_of_a_repeat():
    rate = a_rate(concurrency=2).model_copy(update={"first_token_ms": [30.0, 60.0] * 3})
    assert list(tables.samples([rate], "first_token_ms").values()) == [[45.0] * 3]


def test_a_failed_answer_is_on_the_page():
    page = "\n\n".join(section.section(two_profiles(greedy=[a_match(), a_match(passed=False)])).page)
    assert row(page, "fp8")["answers"] == "**FAILED, gates failed: 1, greedy 32/32 3/32**"
    assert "greedy match 3 of 32" in page
    assert "FAILED" not in text_of(two_profiles())


def test_nothing_passes_against_a_reference_that_fails_its_own_gates(monkeypatch, tmp_path):
    result = a_result(a_row(accuracy=a_record(0.3)), a_row("fp8", "fp8", accuracy=a_record()))
    text = text_of(result)
    assert row(text, "fp8")["answers"] == f"**{REFERENCE_FAILED}**"
    assert [line[2] for line in section.section(result).glance] == [f"**{REFERENCE_FAILED}**"]
    assert {(each["profile"], each["answers"]) for each in rates_of(text)} == {
        ("baseline", "**FAILED, gates failed: 5, mean |Δ log p| 0.300**"),
        ("fp8", f"**{REFERENCE_FAILED}**"),
    }
    figure, _ = drawn(result.rows, monkeypatch, tmp_path)
    assert figure.legends[0].get_texts()[1].get_text() == f"fp8 ({REFERENCE_FAILED})"
    greedy_alone = text_of(a_result(a_row(accuracy=a_record(0.3)), a_row("fp8", "fp8")))
    assert row(greedy_alone, "fp8")["answers"] == f"**{REFERENCE_FAILED}**"


def drawn(rows, monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(accuracy_plot, "save", lambda figure, path: figures.append(figure))
    plot.serving_plot("title", rows, tmp_path / "a.png")
    (figure,) = figures
    return figure, [panel for panel in figure.axes if panel.get_visible()]


def test_the_plot_shows_the_samples_of_each_grid_and_the_accuracy_beside_them(monkeypatch, tmp_path):
    rows = [
        a_row(rates=[a_rate(1024, decode=[90.0, 100.0, 120.0]), a_rate(0), a_rate(0, concurrency=2)]),
        a_row("fp8", "fp8", rates=[a_rate(0)], accuracy=a_record()),
    ]
    figure, (single, double, accuracy) = drawn(rows, monkeypatch, tmp_path)
    series = error_lines(single)
    names = [f"{each.profile} ({answers(each, rows[0])})" for each in rows]
    assert series == {names[0]: [(288, 510, 500, 520), (1312, 100, 90, 120)], names[1]: [(288, 510, 500, 520)]}
    assert error_lines(double) == {names[0]: [(288, 510, 500, 520)]}
    assert list(error_lines(accuracy)) == names
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    assert single.get_ylim()[0] == 0 and list(single.get_xticks()) == [288, 1312]


def test_speed_without_accuracy_is_not_plotted(monkeypatch, tmp_path):
    rows = [a_row(), a_row("fp8", "fp8", rates=SECRET, greedy=[])]
    _, (decode, accuracy) = drawn(rows, monkeypatch, tmp_path)
    for panel in (decode, accuracy):
        assert [name.partition(" ")[0] for name in error_lines(panel)] == ["baseline"]
    assert decode.get_ylim()[1] < 7654


def test_an_accuracy_record_without_rates_is_plotted_alone(monkeypatch, tmp_path):
    _, panels = drawn([a_row(rates=[])], monkeypatch, tmp_path)
    assert len(panels) == 1 and error_lines(panels[0])
