"""`bench export`: CSV read again, and what is left out."""

import csv
import io
import json

import pytest
from click.testing import CliRunner

from bench import cli
from bench.accuracy.result import AccuracyResult, AccuracyRow
from bench.record.files import write
from bench.serving import export
from bench.serving.load.failures import counted
from bench.serving.load.rate import Attempt
from bench.serving.result import ServingResult
from kernels_tests.bench.samples import a_match, a_rate, a_request, a_result, a_row, timed, two_profiles
from vllm_launch.redaction import REPO

LOADED = timed(a_rate(1024, 4), failed=1)
LOADED = LOADED.model_copy(update={name: getattr(LOADED, name)[1:] for name in ("decode_tok_s", "prefill_tok_s")})
LOADED = LOADED.model_copy(update={"first_token_ms": LOADED.first_token_ms[4:]})
RATES = [LOADED, a_rate(0)]
RESULT = a_result(a_row(rates=RATES), a_row("fp8", "fp8", rates=RATES[:1])).model_copy(update={"slo": {"ttft": 100.0}})


def lines_of(result: ServingResult) -> list[dict[str, str]]:
    text, _ = export.export(result, as_vllm=False)
    return list(csv.DictReader(io.StringIO(text)))


def run(path, *options):
    return CliRunner().invoke(cli.bench, ["export", str(path), *options])


def test_csv_has_a_line_per_profile_and_point():
    lines = lines_of(RESULT)
    assert [(line["profile"], line["depth"], line["concurrency"]) for line in lines] == [
        ("baseline", "1024", "4"),
        ("baseline", "0", "1"),
        ("fp8", "1024", "4"),
    ]
    assert all(list(line) == export.CSV_COLUMNS for line in lines)


def test_csv_has_sizes_medians_percentiles_and_goodput():
    """Of four requests at once the last takes twice as long; the first of all fails, and its repeat has no rate."""
    line = lines_of(RESULT)[2]
    sizes = {"depth": 1024, "prompt": 256, "output": 64, "context": 1312, "concurrency": 4, "repeats": 2}
    medians = {"decode_tok_s": 515, "prefill_tok_s": 10300, "first_token_ms": 48}
    counts = {"requests": 12, "failed": 1, "requests_per_s": 4 / 1.46, "output_tok_s": 4 * 64 / 1.46}
    ttft = {"ttft_p50_ms": 100, "ttft_p95_ms": 200, "ttft_p99_ms": 200}
    latencies = {"tpot_p50_ms": 10, "itl_p95_ms": 20, "e2e_p50_ms": 730, "e2e_p99_ms": 1460}
    goodput = {"goodput_share": 8 / 12, "goodput_per_s": 3 / 1.46}
    for name, value in (sizes | medians | counts | ttft | latencies | goodput).items():
        assert float(line[name]) == pytest.approx(value), name
    assert (line["slo"], line["kv_cache"], line["model"]) == ("ttft=100ms", "fp8_e4m3", "tiny_gpt_oss")
    assert line["decoder"] == "stock"


def test_a_point_without_times_of_requests_has_empty_cells():
    line = lines_of(RESULT)[1]
    assert {line[name] for name in ("requests", "failed", "ttft_p50_ms", "goodput_share")} == {""}
    assert float(line["decode_tok_s"]) == 510


def test_a_point_without_a_whole_repeat_has_the_counts_of_its_requests(tmp_path):
    sizes = {"depth": 0, "prompt": 256, "output": 64, "concurrency": 4}
    unrated = Attempt(**sizes, requests=[a_request(), a_request(error="reset")], failures=[])
    unrated = unrated.model_copy(update={"failures": counted(unrated.requests, unsent=10)})
    result = a_result(a_row(rates=[], unrated=[unrated], unavailable=["decode (HTTP 400)"], left_out=["sinks"]))
    (line,) = lines_of(result)
    assert (line["concurrency"], line["repeats"], line["requests"], line["failed"]) == ("4", "0", "12", "11")
    assert {line[name] for name in ("decode_tok_s", "requests_per_s", "output_tok_s", "ttft_p50_ms")} == {""}
    assert line["not_measured"] == "sinks, decode (HTTP 400)"
    exported = json.loads(export.export(result, as_vllm=True)[0])
    assert [exported[name] for name in ("num_prompts", "completed", "failed")] == [12, 0, 11]
    assert exported["request_throughput"] == exported["duration"] == 0
    assert exported["not_measured"] == line["not_measured"]


def test_csv_has_the_accuracy_beside_every_speed():
    failed = a_row("fp8", "fp8", greedy=[a_match(False)], left_out=["sinks"])
    lines = lines_of(a_result(a_row(), failed))
    assert [line["accuracy"] for line in lines] == ["reference", "reference", "FAILED", "FAILED"]
    assert lines[2]["accuracy_record"] == "FAILED, gates failed: 1, greedy 3/32"
    assert [line["not_measured"] for line in lines] == ["", "", "sinks", "sinks"]


@pytest.mark.parametrize("option", ["--csv", "--vllm"])
def test_no_speed_is_exported_without_an_accuracy_record(tmp_path, option):
    rates = [timed(a_rate(decode=[7654.0] * 3))]
    write(a_result(a_row(rates=RATES), a_row("fp8", "fp8", rates=rates, greedy=[])), tmp_path / "result.json")
    exported = run(tmp_path, option)
    assert exported.exit_code == 0 and "7654" not in exported.stdout and "fp8" not in exported.stdout
    assert exported.stderr.startswith("fp8: left out")


def test_the_command_takes_a_single_format(tmp_path):
    write(RESULT, tmp_path / "result.json")
    assert run(tmp_path).exit_code == run(tmp_path, "--csv", "--vllm").exit_code == 2
    exported = run(tmp_path / "result.json", "--csv")
    assert (exported.exit_code, exported.stdout, exported.stderr) == (0, export.export(RESULT, as_vllm=False)[0], "")
    assert run(tmp_path / "absent.json", "--csv").exit_code == 2


def test_vllm_has_no_object_for_a_point_without_times_of_requests(tmp_path):
    write(RESULT, tmp_path / "result.json")
    exported = run(tmp_path, "--vllm")
    objects = [json.loads(line) for line in exported.stdout.splitlines()]
    assert [(each["label"], each["max_concurrency"]) for each in objects] == [("baseline", 4), ("fp8", 4)]
    assert exported.stderr.startswith("baseline: points left out")


def test_results_of_another_kind_are_refused(tmp_path):
    result = two_profiles()
    rows = [row.model_dump(include=set(AccuracyRow.model_fields)) for row in result.rows]
    write(AccuracyResult(id="a", provenance=result.provenance, model=result.model, rows=rows), tmp_path / "a.json")
    assert run(tmp_path / "a.json", "--csv").exit_code == 2


def test_committed_results_are_exported():
    for path in (REPO / "results").glob("serving-*.json"):
        exported = run(path, "--csv")
        lines = list(csv.DictReader(io.StringIO(exported.stdout)))
        assert exported.exit_code == 0 and lines and all(line["accuracy"] and line["decode_tok_s"] for line in lines)
