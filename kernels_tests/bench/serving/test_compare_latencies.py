"""`bench compare` of latencies, goodput and quick runs."""

import re

import pytest

from bench.serving.load.rate import Rate
from bench.serving.result import ServingResult
from kernels_tests.bench.samples import a_rate, a_result, a_row, timed, two_profiles
from kernels_tests.bench.serving.test_compare import both_profiles, compared, loads, profiles, saved


def under_limits(of_a: Rate, of_b: Rate, slo_a: dict, slo_b: dict | None = None) -> list[ServingResult]:
    result = both_profiles(of_a, of_b)
    return [result.model_copy(update={"slo": slo}) for slo in (slo_a, slo_a if slo_b is None else slo_b)]


def test_p95_latencies_and_goodput_are_compared_where_each_side_has_them(tmp_path):
    """Of four requests at once the last, with twice the times, is the p95."""
    of_a, of_b = timed(a_rate(concurrency=4), 100, 10), timed(a_rate(concurrency=4), 50, 5)
    (path, _) = saved(tmp_path, *under_limits(of_a, of_b, {"ttft": 100.0}))
    (pair,) = loads(*profiles(path))["pairs"]
    (point,) = pair["latencies"]["points"]
    assert pair["latencies"]["slo"] == "ttft=100ms"
    assert point == {
        **{"context": 288, "depth": 0, "prompt": 256, "output": 64, "concurrency": 4},
        "ttft_p95_ms": {"a": 200, "b": 100, "ratio": 0.5},
        "itl_p95_ms": {"a": 20, "b": 10, "ratio": 0.5},
        "goodput_share": {"a": 0.75, "b": 1, "ratio": pytest.approx(4 / 3)},
    }
    line = r"288 +64 +4 +200 +100 +0\.50x +20\.0 +10\.0 +0\.50x +75% +100%"
    assert re.search(line, compared(*profiles(path)))


@pytest.mark.parametrize(("slo_a", "slo_b"), [({}, {}), ({"ttft": 100.0}, {}), ({"ttft": 100.0}, {"ttft": 50.0})])
def test_goodput_of_other_limits_is_not_compared(tmp_path, slo_a, slo_b):
    of_a, of_b = timed(a_rate()), timed(a_rate())
    a, b = saved(tmp_path, *under_limits(of_a, of_b, slo_a, slo_b))
    (pair,) = loads(f"{a}:baseline", f"{b}:fp8")["pairs"]
    (point,) = pair["latencies"]["points"]
    assert pair["latencies"]["slo"] is None and "goodput_share" not in point and point["itl_p95_ms"]["ratio"] == 1


def test_latencies_take_times_of_requests_and_accuracy_records(tmp_path):
    (path,) = saved(tmp_path, both_profiles(timed(a_rate()), a_rate()))
    assert loads(*profiles(path))["pairs"][0]["latencies"]["points"] == []
    (path,) = saved(
        tmp_path, a_result(a_row(rates=[timed(a_rate())]), a_row("fp8", "fp8", rates=[timed(a_rate())], greedy=[]))
    )
    assert loads(*profiles(path))["pairs"][0]["latencies"] == {}
    assert "Latency" not in compared(*profiles(path))


def test_a_quick_run_is_named_on_its_side(tmp_path):
    result = two_profiles(left_out=["log-probabilities", "sinks"])
    (path,) = saved(tmp_path, result)
    (pair,) = loads(*profiles(path))["pairs"]
    assert [pair[side]["left_out"] for side in "ab"] == [[], ["log-probabilities", "sinks"]]
    text = compared(*profiles(path))
    assert (
        text.count("quick run") == 1
        and "quick run, not measured: log-probabilities, sinks" in text.partition("B: fp8")[2]
    )
