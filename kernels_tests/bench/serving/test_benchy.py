"""Reading llama-benchy: samples of whole repeats alone; what is missing, null or no rate though no request failed."""

import json
import math
import sys
import urllib.request

import pytest

from bench.accuracy.texts import book
from bench.serving.load import benchy, failures, stream
from bench.serving.load.benchy import Execution
from bench.serving.load.book_server import book_server
from bench.serving.load.rate import Attempt
from bench.suite import GridPoint
from flashinfer_patches.errors import Problem
from kernels_tests.bench.samples import a_request
from kernels_tests.processes import scaled

RUNS = 3


def attempt(requests, concurrency=1):
    counted = failures.counted(requests, RUNS * concurrency - len(requests))
    return Attempt(
        depth=0, prompt=256, output=2, concurrency=concurrency, requests=requests, failures=counted, load_average=0.5
    )


def read(tmp_path, attempt, decode=(1.0, 2.0, 3.0), prefill=(10.0, 20.0, 30.0)):
    saved = tmp_path / "out.json"
    entry = {"tg_throughput": {"values": decode} if decode else None, "pp_throughput": {"values": prefill}}
    saved.write_text(json.dumps({"benchmarks": [entry]}))
    return benchy.read(saved, attempt, RUNS)


def test_a_complete_report(tmp_path):
    rate = read(tmp_path, attempt([a_request(run=run) for run in (1, 2, 3)]))
    assert rate.decode_tok_s == [1, 2, 3] and rate.prefill_tok_s == [10, 20, 30] and rate.first_token_ms == [100] * 3
    assert rate.load_average == 0.5 and len(rate.requests) == 3


@pytest.mark.parametrize(
    ("errors", "values", "decode"),
    [
        ([(None, None), (None, "HTTP 429"), (None, None)], (1.0, 2.0, 3.0), [1, 3]),
        ([(None, None), ("HTTP 429", "HTTP 429"), (None, None)], (1.0, 3.0), [1, 3]),
        ([(stream.CUT, stream.CUT), (None, None), ("reset", "reset")], (1.0, 2.0), [2]),
        ([(None, None), (None, None), (None,)], (1.0, 2.0, 3.0), [1, 2]),
        ([(None, None), (None, None)], (1.0, 2.0), [1, 2]),
        ([("HTTP 429", None), (None, "HTTP 429"), (None, stream.NO_TOKENS)], (1.0, 2.0, 3.0), None),
        ([(None, None), (None, None), (None, "HTTP 429")], (1.0, 2.0), None),
    ],
)
def test_a_repeat_with_a_failed_request_has_no_sample(tmp_path, errors, values, decode):
    requests = [a_request(run=repeat, error=error) for repeat, each in enumerate(errors, start=1) for error in each]
    rate = read(tmp_path, attempt(requests, concurrency=2), values, values)
    if decode is None:
        assert type(rate) is Attempt and len(rate.requests) == 6, "no whole repeat, or values of unknown repeats"
    else:
        assert rate.decode_tok_s == rate.prefill_tok_s == decode and len(rate.first_token_ms) == 2 * len(decode)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decode": None}, "tg_throughput"),
        ({"prefill": [1.0] * 2}, "pp_throughput"),
        ({"decode": [1.0, 0.0, 1.0]}, "not rates: decode_tok_s"),
        ({"decode": [1.0, math.nan, 1.0]}, "not rates: decode_tok_s"),
        ({"prefill": [1.0, None, 1.0]}, "not rates: prefill_tok_s"),
    ],
)
def test_an_incomplete_report_fails(tmp_path, changes, message):
    with pytest.raises(Problem) as caught:
        read(tmp_path, attempt([a_request(run=run) for run in (1, 2, 3)]), **changes)
    assert caught.value.exit_code == 1 and message in caught.value.message


@pytest.mark.parametrize(
    ("log", "returncode", "message"),
    [
        ("Falling back to 'gpt2' tokenizer as approximation.", 0, "gpt2"),
        ("Date: today\nTraceback\nOSError: no tokenizer", 1, "OSError: no tokenizer"),
        ("", 0, "no reason"),
        ("", -9, "exit code -9"),
    ],
)
def test_a_failure_of_llama_benchy_itself_is_no_failed_request(tmp_path, log, returncode, message):
    with pytest.raises(Problem) as caught:
        benchy._check(Execution(returncode, 0.0, 0.0, None, None), log, tmp_path / "out.json")
    assert caught.value.kind == "requests" and message in caught.value.message


WARM_UP = 'import time; print(\'{{"type":"latency_measured"}}\', flush=True); time.sleep({}); '
MEASURED = 'print(\'{"type":"request_start"}\', flush=True); time.sleep(1000)'


def executed(tmp_path, warm_up_s, warm_up_limit_s):
    command = [sys.executable, "-c", WARM_UP.format(warm_up_s) + MEASURED]
    return benchy._execute(command, {}, tmp_path / "a.json", warm_up_limit_s, lambda: None, lambda: None)


def test_the_warm_up_has_its_own_limit_without_an_event(tmp_path, monkeypatch):
    monkeypatch.setattr(benchy, "CHECK_S", 0.01)
    monkeypatch.setattr(benchy, "STALL_S", 0.001)
    execution = executed(tmp_path, 0.2, 1000.0)
    assert execution.silent_s == 0.001 and "request_start" in (tmp_path / "a.jsonl").read_text()
    assert execution.start - execution.warm_up_start > 0.1
    execution = executed(tmp_path, 1000, 0.002)
    assert execution.silent_s == 0.002 and "request_start" not in (tmp_path / "a.jsonl").read_text()


def test_the_limit_of_the_warm_up_grows_with_the_point():
    single, loaded = GridPoint(0, 128, 32, 1), GridPoint(32768, 256, 128, 16)
    assert benchy.STALL_S <= benchy._warm_up_limit_s(single) < 2 * benchy.STALL_S
    assert benchy._warm_up_limit_s(loaded) > 10 * benchy.STALL_S


def test_the_book_is_served_on_loopback_and_long_enough():
    with book_server(32768 + 256) as url:
        assert url.startswith("http://127.0.0.1:")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        text = opener.open(url, timeout=scaled(10)).read()
    assert text == book()
    assert len(text) > 500_000
