"""What a report states of a load: latencies, failures and goodput of requests, and throughput against latency."""

import csv
import io

import pytest

from bench.serving import export, goodput, plot, section, tables
from bench.serving.load import failures
from bench.serving.load.counters import Counters
from bench.serving.load.rate import Attempt
from kernels_tests.bench.report.reading import row
from kernels_tests.bench.report.reading import tables as tables_of
from kernels_tests.bench.samples import a_rate, a_record, a_request, a_result, a_row, timed, two_profiles
from kernels_tests.bench.serving.test_section import LONGEST, SHORTEST, drawn, text_of


def latency_cells(rates, slo=None, **changes):
    """The rows of the latency table by header."""
    blocks = tables.latency_table([a_row(rates=rates, **{"accuracy": a_record()} | changes)], slo or {})
    return tables_of("\n\n".join(blocks))[0] if blocks else []


def test_latencies_are_those_of_the_requests():
    times = {"itl_ms": [100, 300], "tokens": 3}
    requests = [a_request(run=run, ttft_ms=100 * run, e2e_ms=100 * run + 400, **times) for run in (1, 2)]
    (cells,) = latency_cells([a_rate().model_copy(update={"requests": requests})])
    assert cells["first token, ms"] == "100 / 200 / 200 of 2"
    assert cells["per output token, ms"].startswith("200 / 200")
    assert cells["between tokens, ms"] == "100 / 300 / 300 of 4"
    assert cells["whole request, ms"].startswith("500 / 600")
    assert (cells["requests/s"], cells["output tokens/s"], cells["failed"]) == ("1.83", "5.50", "0 of 2")
    assert not any("goodput" in header for header in cells)


def test_latencies_stand_beside_an_accuracy_record_alone():
    assert latency_cells([timed(a_rate())], greedy=[], accuracy=None) == []
    assert latency_cells([a_rate()]) == [], "no times of requests"


def test_failed_requests_and_goodput_are_counted_at_each_point():
    """Of four at once the last takes twice as long; of the first repeat two fail."""
    slo = {"ttft": 100.0, "e2e": 200.0}
    single, loaded = latency_cells(
        [timed(a_rate(output=11), 50, 5), timed(a_rate(concurrency=4, output=11), failed=2)], slo
    )
    assert (single["failed"], single["goodput, requests/s"]) == ("0 of 3", "5.00 (100%)")
    assert (loaded["failed"], loaded["goodput, requests/s"]) == ("2 of 12", "7.50 (58%)")
    result = two_profiles(rates=[timed(a_rate())]).model_copy(update={"slo": slo})
    assert goodput.as_text(slo) in text_of(result)


def test_counters_of_the_server_and_points_without_a_whole_repeat_are_shown():
    counters = Counters(waiting=12, preemptions=3, kv_cache_usage=0.987)
    loaded = timed(a_rate(concurrency=4)).model_copy(update={"counters": counters})
    rated = timed(a_rate(1024), failed=1)
    unrated = Attempt(**rated.model_dump(include={*Attempt.model_fields}))
    first, second = latency_cells([loaded], unrated=[unrated])
    names = ("waiting", "preemptions", "KV cache used")
    assert [first[name] for name in names] == ["12", "3", "99%"]
    assert [second[name] for name in names] == ["-"] * 3
    assert (second["context"], second["failed"]) == ("1,312", "1 of 3")


def test_latencies_and_throughput_are_those_of_whole_repeats():
    """The first repeat is whole; in the second the server dies, the third is never sent."""
    requests = [a_request(run=run) for run in (1, 1, 2)]
    requests += [a_request(run=2, ttft_ms=None, e2e_ms=9000, itl_ms=[], tokens=0, error="reset")]
    rate = a_rate(concurrency=2, decode=[500.0])
    rate = rate.model_copy(update={"requests": requests, "failures": failures.counted(requests, unsent=2)})
    (cells,) = latency_cells([rate], slo={"ttft": 100.0})
    assert (cells["requests/s"], cells["output tokens/s"], cells["failed"]) == ("4.00", "20.0", "3 of 6")
    assert cells["first token, ms"] == "100 / 100 / 100 of 2"
    assert cells["goodput, requests/s"] == "0.11 (50%)", "median of 4, 1 in 9 s, and 0"
    load = plot.Load(0, 256, 64)
    assert plot.load_points(a_row(rates=[rate]), load) == [plot.LoadPoint(2, 100, 20)]
    failed = [a_request(run=1), a_request(run=1, error="HTTP 429")]
    rate = rate.model_copy(update={"requests": failed, "failures": failures.counted(failed)})
    (cells,) = latency_cells([rate])
    assert {cells[name] for name in ("requests/s", "output tokens/s", "first token, ms")} == {"-"}
    assert plot.load_points(a_row(rates=[rate]), load) == []


def test_a_point_that_was_never_sent_is_listed_with_its_failures():
    unsent = Attempt(depth=0, prompt=256, output=64, concurrency=4, requests=[], failures=failures.counted([], 12))
    (cells,) = latency_cells([], unrated=[unsent], slo={"ttft": 100.0})
    assert (cells["requests/s"], cells["failed"], cells["goodput, requests/s"]) == ("-", "12 of 12", "0.00 (0%)")


def test_first_token_is_the_median_of_the_repeats_as_in_the_csv():
    rate = a_rate(concurrency=2).model_copy(update={"first_token_ms": [10.0, 30.0, 10.0, 50.0, 10.0, 90.0]})
    result = a_result(a_row(rates=[rate]))
    (cells,) = tables_of("\n\n".join(tables.rate_table(result.rows, result.rows[0])))[0]
    (line,) = csv.DictReader(io.StringIO(export.export(result, as_vllm=False)[0]))
    assert cells["first token, ms"] == "30.0 (20.0 to 50.0)" and float(line["first_token_ms"]) == 30


LOADED = {concurrency: timed(a_rate(0, concurrency), gap_ms=concurrency) for concurrency in (1, 4, 16)}


def test_the_load_panel_has_a_curve_per_profile_and_the_requests_at_once(monkeypatch, tmp_path):
    rows = [a_row(rates=[*LOADED.values(), timed(a_rate(1024))]), a_row("fp8", "fp8", rates=[LOADED[4], LOADED[16]])]
    figure, (load, single, _) = drawn(rows, monkeypatch, tmp_path)
    lines = {line.get_label(): line.get_xydata().tolist() for line in load.lines if line.get_marker() != "None"}
    p95 = [2, 8, 32]  # of the last request, which takes twice as long
    tok_s = [64 / (0.2 + 0.063 * 2), 4 * 64 / (0.2 + 0.063 * 8), 16 * 64 / (0.2 + 0.063 * 32)]
    points = [[pytest.approx(x), pytest.approx(y)] for x, y in zip(p95, tok_s, strict=True)]
    assert list(lines.values()) == [points, points[1:]]
    assert [label.partition(" ")[0] for label in lines] == ["baseline", "fp8"]
    assert [text.get_text() for text in load.texts] == ["1", "4", "16"]
    assert "(ms)" in load.get_xlabel() and "tokens/s" in load.get_title("left")
    assert "depth 0, 256 in, 64 out" in load.get_title("left")
    assert "1 request" in single.get_title("left") and list(single.get_xticks()) == [288, 1312]
    assert [line.get_xdata().tolist() for line in load.lines if line.get_linestyle() == ":"] == [[8, 8], [32, 32]]
    assert plot.ALIKE in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_single_profile_has_no_dotted_line(monkeypatch, tmp_path):
    figure, (load, _) = drawn([a_row(rates=[*LOADED.values()])], monkeypatch, tmp_path)
    assert [line.get_linestyle() for line in load.lines] == ["-"]
    assert plot.ALIKE not in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_load_without_an_accuracy_record_is_not_plotted(monkeypatch, tmp_path):
    rows = [a_row(rates=[*LOADED.values()]), a_row("fp8", "fp8", rates=[timed(a_rate(0, 2))], greedy=[])]
    assert plot.loads(rows) == [(0, 256, 64)] and plot.load_points(rows[1], (0, 256, 64)) == []
    _, (load, _) = drawn(rows, monkeypatch, tmp_path)
    assert [text.get_text() for text in load.texts] == ["1", "4", "16"]


def test_a_load_panel_takes_two_concurrencies_with_times_of_requests():
    assert plot.loads([a_row(rates=[LOADED[1], timed(a_rate(1024, 4))])]) == []
    assert plot.loads([a_row(rates=[a_rate(0, 1), a_rate(0, 4)])]) == []
    depths = [timed(a_rate(depth, concurrency)) for depth in (0, 1024) for concurrency in (1, 4)]
    assert plot.loads([a_row(rates=depths)]) == [(0, 256, 64), (1024, 256, 64)]


def test_the_headline_is_that_of_a_single_request_also_under_load():
    rates = [*LOADED.values(), a_rate(1024, decode=[100.0, 101.0, 102.0])]
    page = "\n\n".join(section.section(a_result(a_row(rates=rates), a_row("fp8", "fp8", rates=rates))).page)
    assert row(page, "baseline")[SHORTEST] == "510 tokens/s" and row(page, "baseline")[LONGEST] == "101 tokens/s"
