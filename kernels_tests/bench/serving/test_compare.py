"""`bench compare`: what it calls noise, what it refuses and with which list, what it hides."""

import json
import random
import re
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bench import kinds
from bench.accuracy.result import AccuracyResult, AccuracyRow
from bench.accuracy.tables import REFERENCE_FAILED
from bench.cli import bench
from bench.record.files import write
from bench.record.noise import verdict
from bench.servers.result import FailedStep
from bench.serving import compare, tables
from bench.serving.load.rate import Rate
from bench.serving.result import ServingResult
from flashinfer_patches.errors import EXIT_CODES, Problem
from kernels_tests.bench.samples import (
    NOT_RUN,
    a_match,
    a_rate,
    a_record,
    a_resolved,
    a_result,
    a_row,
    two_profiles,
)
from vllm_launch.redaction import REPO

KEPT_RESULT = REPO / "results" / "serving-20261129-232902.json"


def saved(folder: Path, *results: ServingResult) -> list[str]:
    """Results as a.json, b.json; their paths as text."""
    paths = [folder / f"{name}.json" for name, _ in zip("ab", results, strict=False)]
    for path, result in zip(paths, results, strict=True):
        write(result, path)
    return list(map(str, paths))


def compared(a: str, b: str, **options) -> str:
    return compare.compare(a, b, kinds.read, **options)


def loads(a: str, b: str, **options) -> dict:
    return json.loads(compared(a, b, as_json=True, **options))


def speeds(comparison: dict, field: str, key: str) -> list:
    """A value of each point of the only pair."""
    (pair,) = comparison["pairs"]
    return [point[key] for point in pair["speeds"][field]["points"]]


def a_point(decode, prefill=1000.0, first_token=100.0, spread=0.01, repeats=3, concurrency=1) -> Rate:
    """Repeats that differ by `spread` of the middle."""
    steps = [1 + spread * (2 * index / (repeats - 1) - 1) for index in range(repeats)]
    return a_rate(concurrency=concurrency).model_copy(
        update={
            "decode_tok_s": [decode * step for step in steps],
            "prefill_tok_s": [prefill * step for step in steps],
            "first_token_ms": [first_token * step for step in steps for _ in range(concurrency)],
        }
    )


def both_profiles(of_a: Rate, of_b: Rate) -> ServingResult:
    return a_result(a_row(rates=[of_a]), a_row("fp8", "fp8", rates=[of_b]))


def profiles(path: str) -> tuple[str, str]:
    return f"{path}:baseline", f"{path}:fp8"


@pytest.mark.parametrize(
    ("decode", "prefill", "first_token", "verdicts"),
    [
        (501, 999, 101, ["inside the noise"] * 3),
        (600, 1200, 80, ["faster"] * 3),
        (400, 800, 125, ["slower"] * 3),
        (600, 1001, 125, ["faster", "inside the noise", "slower"]),
    ],
)
def test_a_difference_is_noise_or_a_direction(tmp_path, decode, prefill, first_token, verdicts):
    (path,) = saved(tmp_path, both_profiles(a_point(500), a_point(decode, prefill, first_token)))
    comparison = loads(*profiles(path))
    assert [speeds(comparison, field, "verdict")[0] for field in compare.SPEEDS] == verdicts
    assert speeds(comparison, "decode_tok_s", "ratio") == [pytest.approx(decode / 500)]
    assert re.findall(r"B [\d.]+x ± [\d.]+ of A \(1 point: (.+)\)", compared(*profiles(path))) == verdicts


def test_the_same_ratio_is_noise_where_samples_lie_wide(tmp_path):
    for spread, expected in ((0.01, "faster"), (0.05, "inside the noise"), (0.2, "too noisy to compare")):
        (path,) = saved(tmp_path, both_profiles(a_point(500, spread=spread), a_point(550, spread=spread)))
        assert speeds(loads(*profiles(path)), "decode_tok_s", "verdict") == [expected]


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_that_of_the_report(tmp_path, seed):
    chance = random.Random(seed)
    rates = [[a_rate(depth, decode=[chance.gauss(500, 20) for _ in range(3)]) for depth in (0, 1024)] for _ in "ab"]
    result = a_result(a_row(rates=rates[0]), a_row("fp8", "fp8", rates=rates[1]))
    (path,) = saved(tmp_path, result)
    comparison, in_report = loads(*profiles(path)), list(tables.ratios(result.rows[1], result.rows[0]).values())
    for key, expected in (
        ("ratio", [ratio.value for ratio in in_report]),
        ("noise", [ratio.noise for ratio in in_report]),
        ("verdict", list(map(verdict, in_report))),
    ):
        assert speeds(comparison, "decode_tok_s", key) == expected


def test_single_samples_have_no_known_noise(tmp_path):
    single = [a_rate(decode=[value]) for value in (500.0, 5000.0)]
    (path,) = saved(tmp_path, both_profiles(*single))
    comparison = loads(*profiles(path))
    assert speeds(comparison, "decode_tok_s", "noise") == [None]
    assert speeds(comparison, "decode_tok_s", "verdict") == ["noise not known"]
    assert "10.00x  noise not known" in compared(*profiles(path))


def test_first_token_is_a_mean_over_the_requests_of_a_repeat(tmp_path):
    """Two requests at once get their first token one after the other: that is no noise."""
    waits = [
        a_point(500, concurrency=2).model_copy(update={"first_token_ms": ms}) for ms in ([30, 60] * 3, [40, 80] * 3)
    ]
    (path,) = saved(tmp_path, both_profiles(*waits))
    comparison = loads(*profiles(path))
    assert [speeds(comparison, "first_token_ms", key) for key in ("a", "b", "verdict")] == [[45], [60], ["slower"]]


def test_two_profiles_of_a_file(tmp_path):
    (path,) = saved(tmp_path, two_profiles())
    comparison = loads(*profiles(path))
    (pair,) = comparison["pairs"]
    assert (pair["a"]["profile"], pair["b"]["profile"]) == ("baseline", "fp8")
    assert pair["kv_capacity_tokens"] == {"a": 671_088, "b": 1_342_177, "ratio": pytest.approx(2.0, abs=1e-5)}
    assert [start["ratio"] for start in pair["starts"]] == [1.0] * 4
    assert (comparison["forced"], pair["differences"]) == (False, [])
    swapped = loads(*reversed(profiles(path)))["pairs"][0]["kv_capacity_tokens"]
    assert (swapped["a"], swapped["ratio"]) == (1_342_177, pytest.approx(0.5, abs=1e-5))


def test_profiles_of_the_same_name_are_paired(tmp_path):
    extra = a_row("other", "fp8", greedy=[a_match()])
    a, b = saved(tmp_path, a_result(a_row(), a_row("fp8", "fp8"), extra), a_result(a_row("fp8", "fp8"), a_row()))
    comparison = loads(a, b)
    assert [(pair["a"]["profile"], pair["b"]["profile"]) for pair in comparison["pairs"]] == [
        ("baseline",) * 2,
        ("fp8",) * 2,
    ]
    assert {pair[side]["file"] for pair in comparison["pairs"] for side in "ab"} == {a, b}
    assert comparison["not_paired"] == {"a": ["other"], "b": []}
    assert "Only in A, not compared: other" in compared(a, b)
    for words in ((f"{a}:fp8", b), (a, f"{b}:fp8")):  # one name stands for both
        ((pair),) = loads(*words)["pairs"]
        assert (pair["a"]["profile"], pair["b"]["profile"]) == ("fp8", "fp8")


def test_nothing_to_pair_is_a_usage_error_that_names_the_profiles(tmp_path):
    a, b = saved(tmp_path, a_result(a_row()), a_result(a_row("fp8", "fp8")))
    with pytest.raises(click.UsageError, match=r"no profile is in both: .*a\.json has baseline, .*b\.json has fp8"):
        compared(a, b)
    with pytest.raises(click.UsageError, match=r"b\.json has no profile 'baseline'; it has fp8"):
        compared(f"{a}:baseline", b)
    assert loads(f"{a}:baseline", f"{b}:fp8")


def test_a_file_may_have_a_colon_in_its_name(tmp_path):
    write(two_profiles(), tmp_path / "12:30")
    assert loads(f"{tmp_path}/12:30:baseline", f"{tmp_path}/12:30")["pairs"][0]["a"]["profile"] == "baseline"


def with_secret_speed(**changes) -> ServingResult:
    rate = a_point(7654, 7655, 7656)
    return a_result(a_row(rates=[a_point(500)]), a_row("fp8", "fp8", **{"rates": [rate], "greedy": []} | changes))


@pytest.mark.parametrize("flipped", [False, True])
def test_speed_without_accuracy_is_not_shown(tmp_path, flipped):
    (path,) = saved(tmp_path, with_secret_speed())
    words = profiles(path)[::-1] if flipped else profiles(path)
    text, comparison = compared(*words), loads(*words)
    assert f"not shown: no accuracy record of {'A' if flipped else 'B'}" in text
    assert comparison["pairs"][0]["speeds"] == {}
    for shown in (text, json.dumps(comparison)):
        assert "765" not in shown.replace(",", "") and "15.3" not in shown
    (path,) = saved(tmp_path, with_secret_speed(greedy=[a_match()]))
    assert "7,654" in compared(*profiles(path))


def test_accuracy_stands_beside(tmp_path):
    (path,) = saved(tmp_path, with_secret_speed(greedy=[a_match(passed=False)]))
    text, side = compared(*profiles(path)), loads(*profiles(path))["pairs"][0]["b"]
    assert "answers: reference, mean |Δ log p| 0.006; KL 0.00042 nats a token\n" in text
    assert "answers: FAILED, gates failed: 1, greedy 3/32\n" in text
    assert (side["accuracy"], side["outcome"]) == ("FAILED, gates failed: 1, greedy 3/32", "FAILED")
    assert side["greedy"][0]["matched"] == 3


@pytest.mark.parametrize(
    ("record", "outcome"),
    [
        ({}, "pass, mean |Δ log p| 0.100"),
        ({"bound": 0.09}, "FAILED, gates failed: 5, mean |Δ log p| 0.100"),
        ({"bound": None}, "not judged, mean |Δ log p| 0.100"),
        (
            {"judged_at": datetime(2026, 7, 9, tzinfo=UTC)},
            "pass, mean |Δ log p| 0.100, judged after the run, 2026-07-09",
        ),
        ({"sinks": NOT_RUN}, "pass, sinks not run, mean |Δ log p| 0.100"),
    ],
)
def test_log_probabilities_stand_beside_and_are_a_record(tmp_path, record, outcome):
    (path,) = saved(tmp_path, with_secret_speed(accuracy=a_record(**record)))
    text, side = compared(*profiles(path)), loads(*profiles(path))["pairs"][0]["b"]
    assert "7,654" in text and f"answers: {outcome}; KL 0.007 nats a token\n" in text
    assert (side["accuracy"], side["outcome"]) == (outcome, outcome.partition(",")[0])
    assert side["agreement"]["decode"]["kl"]["value"] == pytest.approx(0.007)


def test_nothing_passes_against_a_reference_that_fails_its_own_gates(tmp_path):
    result = a_result(a_row(accuracy=a_record(0.3)), a_row("fp8", "fp8", accuracy=a_record()))
    (path,) = saved(tmp_path, result)
    (pair,) = loads(*profiles(path))["pairs"]
    assert [pair[side]["outcome"] for side in "ab"] == ["FAILED", "FAILED"]
    assert f"answers: {REFERENCE_FAILED}; KL" in compared(*profiles(path))


def test_a_busy_machine_is_warned_about_on_both_sides(tmp_path):
    result = two_profiles()
    source = result.provenance.model_copy(update={"load_average": 9.0})
    (path,) = saved(tmp_path, result.model_copy(update={"provenance": source}))
    assert compared(*profiles(path)).count("Other work on the machine") == 2


def test_results_of_another_kind_are_refused(tmp_path):
    result = two_profiles()
    rows = [row.model_dump(include=set(AccuracyRow.model_fields)) for row in result.rows]
    result = AccuracyResult(id="a", provenance=result.provenance, model=result.model, rows=rows)
    (path,) = saved(tmp_path, result)
    with pytest.raises(click.UsageError, match="kind accuracy: only serving results are compared"):
        compared(path, path)


def test_missing_measurements_are_shown(tmp_path):
    failure = FailedStep(step="cold", message="the server died")
    bare = a_row("fp8", "fp8", resolved=None, starts=[], rates=[], failures=[failure])
    (path,) = saved(tmp_path, a_result(a_row(), bare))
    text = compared(*profiles(path))
    assert "FAILED in step cold: the server died" in text
    assert re.search(r"KV cache +bfloat16 +not read back\n", text)
    assert re.search(r"KV capacity, tokens +671,088 +- +-\n", text)
    assert re.search(r"server start, cold, s +21\.4 +- +-\n", text)
    assert "Decode rate, tokens/s: no point in common" in text
    assert "Points not compared: 2 only in A" in text


def test_another_backend_is_refused_and_shown_where_forced(tmp_path):
    resolved = a_resolved("fp8_e4m3").model_copy(update={"attention_backends": ["FLASHINFER"]})
    (path,) = saved(tmp_path, two_profiles(resolved=resolved))
    with pytest.raises(Problem, match=r"resolved attention_backends: CPU_ATTN \| FLASHINFER"):
        compared(*profiles(path))
    assert re.search(r"attention backend +CPU_ATTN +FLASHINFER\n", compared(*profiles(path), force=True))


def test_a_half_written_file_is_a_problem(tmp_path):
    a, b = saved(tmp_path, two_profiles(), two_profiles())
    (tmp_path / "b.json").write_text((tmp_path / "b.json").read_text()[:2000])
    for words in ((a, b), (b, a), (f"{a}:fp8", f"{b}:fp8"), (a, str(tmp_path / "missing.json:fp8"))):
        with pytest.raises(Problem) as problem:
            compared(*words)
        assert problem.value.kind == "file"


def run(*words: str):
    return CliRunner().invoke(bench, ["compare", *words])


def test_the_command(tmp_path):
    a, b = saved(tmp_path, two_profiles(), two_profiles())
    assert (run(a, b).exit_code, run(a, b).stdout) == (0, compared(a, b) + "\n")
    assert json.loads(run(a, b, "--json").stdout) == loads(a, b)
    assert run(f"{a}:nothing", b).exit_code == 2
    assert run("absent.json", b).exit_code == EXIT_CODES["file"]


def test_the_kept_result_compares():
    text = compared(f"{KEPT_RESULT}:baseline", f"{KEPT_RESULT}:fp8")
    assert re.search(r"Decode rate, tokens/s: B \d\.\d\dx ± \d\.\d\d .* of A \(4 points: ", text)
    assert re.search(r"KV capacity, tokens +551,882 +1,103,764 +2\.00x\n", text)
    assert max(map(len, text.splitlines())) <= 120
