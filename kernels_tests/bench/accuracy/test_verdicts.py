"""A result file whose verdicts its own figures contradict, or whose figures are no numbers, is refused."""

import json
import math

import pytest

from bench import kinds as result
from bench.accuracy.verdicts import GreedyMatch
from bench.record import files
from flashinfer_patches.errors import Problem
from kernels_tests.bench.samples import a_match, a_record, a_result, a_row, a_sink_check

GOOD = a_result(a_row(), a_row("fp8", "fp8", accuracy=a_record()))
FP8 = ("rows", 1)
RATE, ACCURACY, MATCH = (*FP8, "rates", 0), (*FP8, "accuracy"), (*FP8, "greedy", 0)
MEAN = (*ACCURACY, "decode", "mean_abs_delta")


def refused(tmp_path, *edits) -> str:
    """The message of read() for GOOD with (path, value) edited in its file."""
    content = json.loads(GOOD.model_dump_json())
    for path, value in edits:
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        assert inner[path[-1]] != value
        inner[path[-1]] = value
    file = tmp_path / "result.json"
    file.write_text(json.dumps(content))
    with pytest.raises(Problem) as caught:
        result.read(file)
    assert caught.value.kind == "file" and str(file) in caught.value.message and "\n" not in caught.value.message
    return caught.value.message


def test_the_unedited_result_is_read(tmp_path):
    files.write(GOOD, tmp_path / "result.json")
    assert result.read(tmp_path / "result.json") == GOOD


@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        ([((*MATCH, "matched"), 1)], "passed is True, but 1 of 32 tokens equal"),
        ([((*MATCH, "distinct"), 11)], "passed is True, but 32 of 32 tokens equal, 11 distinct"),
        ([((*MATCH, "matched"), 33)], "33 of 32 tokens are equal"),
        ([((*MATCH, "passed"), False)], "passed is False, but 32 of 32"),
        ([((*MATCH, "min_match"), 0.5), ((*MATCH, "matched"), 16)], "passed is True, but 16 of 32"),
        ([((*ACCURACY, "gates", 0, "value"), 0.5)], "passed is True, but mean_abs_delta 0.5 against the bound 0.125"),
        ([((*ACCURACY, "gates", 0, "passed"), None)], "passed is None"),
        ([((*ACCURACY, "gates", 1, "passed"), True)], "passed is True, but p99_abs_delta 0.6 against the bound None"),
        ([((*ACCURACY, "gates", 0, "value"), 0.01)], "a gate has decode mean_abs_delta 0.01 at all contexts"),
        ([((*ACCURACY, "gates", 0, "context"), 77)], "at context 77, the record None"),
        ([((*MEAN, "value"), 0.01)], "the record 0.01"),
        ([((*MEAN, "low"), 9.0)], "an interval from 9.0"),
        ([((*ACCURACY, "decode", "top1", "value"), 1.5)], "top1 from 0 to 1"),
        ([((*ACCURACY, "sinks", "mean_abs_delta", "true"), 0.3)], "status is passed, but its distances"),
        ([((*ACCURACY, "sinks", "mean_abs_delta", "zeroed"), 0.1)], "status is passed, but its distances"),
        ([((*ACCURACY, "sinks", "mean_abs_delta"), {})], "not the distances of the true and of wrong sinks"),
        ([((*ACCURACY, "sinks", "reason"), "no time")], "status is passed, with figures"),
    ],
)
def test_a_verdict_that_its_figures_contradict_is_refused(tmp_path, edits, reason):
    message = refused(tmp_path, *edits)
    assert "contradicts itself" in message and reason in message


@pytest.mark.parametrize(
    "path",
    [
        (*RATE, "decode_tok_s", 0),
        (*RATE, "prefill_tok_s", 0),
        (*RATE, "first_token_ms", 0),
        (*FP8, "starts", 0, "start_s"),
        (*FP8, "starts", 0, "first_token_s"),
        (*ACCURACY, "sinks", "mean_abs_delta", "true"),
        (*ACCURACY, "gates", 0, "bound"),
        (*MATCH, "margin"),
    ],
    ids=lambda path: str(path[-1]),
)
def test_a_figure_that_is_not_finite_and_positive(tmp_path, path):
    for value in (math.nan, math.inf, -1.0):
        assert str(path[-1]) in refused(tmp_path, (path, value))


@pytest.mark.parametrize("path", [(*MEAN, "value"), (*MEAN, "high"), (*ACCURACY, "gates", 0, "value")])
def test_a_figure_that_is_not_finite(tmp_path, path):
    for value in (math.nan, -math.inf):
        refused(tmp_path, (path, value))


def test_no_samples_and_no_contexts(tmp_path):
    assert "decode_tok_s" in refused(tmp_path, ((*RATE, "decode_tok_s"), []))
    assert "contexts" in refused(tmp_path, ((*ACCURACY, "contexts"), []))


def test_a_file_that_is_not_utf_8_is_a_problem(tmp_path):
    (tmp_path / "result.json").write_bytes(b"{\xff}")
    with pytest.raises(Problem) as caught:
        result.read(tmp_path / "result.json")
    assert caught.value.kind == "file"


def test_a_match_without_recorded_bounds_has_the_bounds_of_its_time():
    old = a_match().model_dump(exclude={"min_match", "min_distinct"})
    assert (GreedyMatch(**old).min_match, GreedyMatch(**old).min_distinct) == (0.95, 12)
    for matched, passed in ((31, True), (30, False)):
        GreedyMatch(**(old | {"matched": matched, "passed": passed}))
        with pytest.raises(ValueError):
            GreedyMatch(**(old | {"matched": matched, "passed": not passed}))


def test_a_sink_check_without_figures_is_not_run_or_failed():
    none = {"mean_abs_delta": {}, "reason": "why"}
    for status in ("not run", "FAILED"):
        assert type(a_sink_check())(**(a_sink_check().model_dump() | none | {"status": status})).status == status
