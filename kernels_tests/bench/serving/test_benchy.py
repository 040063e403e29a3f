"""Reading llama-benchy: what is missing, null or miscounted fails the run."""

import json
import math
import urllib.request

import pytest

from bench.accuracy.texts import book
from bench.serving import benchy
from bench.suite import Grid
from flashinfer_patches.errors import Problem
from kernels_tests.processes import scaled

GRID = Grid(prompt=[256], output=[64], depth=[0], concurrency=[1, 2], runs=3)


def entry(concurrency, **changes):
    def metric(count):
        return {"mean": 1.0, "std": 0.0, "values": [1.0] * count}

    return {
        "concurrency": concurrency,
        "context_size": 0,
        "prompt_size": 256,
        "response_size": 64,
        "pp_throughput": metric(3),
        "tg_throughput": metric(3),
        "e2e_ttft": metric(3 * concurrency),
    } | changes


def read(tmp_path, benchmarks, log="", returncode=0):
    saved = tmp_path / "out.json"
    if benchmarks is not None:
        saved.write_text(json.dumps({"benchmarks": benchmarks}))
    return benchy.read(saved, log, returncode, GRID, depth=0)


def test_a_complete_report(tmp_path):
    first, second = read(tmp_path, [entry(1), entry(2)])
    assert (first.concurrency, second.concurrency) == (1, 2)
    assert len(first.decode_tok_s) == 3 and len(second.first_token_ms) == 6


@pytest.mark.parametrize(
    ("benchmarks", "log", "returncode", "message"),
    [
        ([entry(1), entry(2)], "Falling back to 'gpt2' tokenizer as approximation.", 0, "gpt2"),
        (None, "HTTP 500: boom", 1, "HTTP 500"),
        (None, "", 0, "no reason"),
        ([entry(1)], "", 0, "1 of 2"),
        ([entry(1), entry(2, tg_throughput=None)], "", 0, "tg_throughput has 0 of 3"),
        ([entry(1), entry(2, e2e_ttft={"values": [1.0] * 5})], "", 0, "e2e_ttft has 5 of 6"),
        ([entry(1), entry(2, pp_throughput={"values": [1.0] * 2})], "", 0, "pp_throughput has 2 of 3"),
        ([entry(1), entry(2, tg_throughput={"values": [1.0, 0.0, 1.0]})], "", 0, "no rates: decode_tok_s"),
        ([entry(1), entry(2, tg_throughput={"values": [1.0, math.nan, 1.0]})], "", 0, "no rates: decode_tok_s"),
        ([entry(1), entry(2, pp_throughput={"values": [1.0, None, 1.0]})], "", 0, "no rates: prefill_tok_s"),
    ],
)
def test_an_incomplete_report_fails(tmp_path, benchmarks, log, returncode, message):
    with pytest.raises(Problem) as caught:
        read(tmp_path, benchmarks, log, returncode)
    assert caught.value.exit_code == 1 and message in caught.value.message


def test_the_book_is_served_on_loopback_and_long_enough():
    with benchy.book_server() as url:
        assert url.startswith("http://127.0.0.1:")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        text = opener.open(url, timeout=scaled(10)).read()
    assert text == book()
    assert len(text) > 500_000


def test_the_load_average_is_that_at_the_end_of_each_point(tmp_path):
    rates = read(tmp_path, [entry(1), entry(2)])
    loads = [0.1, 0.2, 0.3, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]
    assert [rate.load_average for rate in benchy.with_loads(rates, loads, GRID.runs)] == [0.3, 1.6]
    assert [rate.load_average for rate in benchy.with_loads(rates, loads[1:], GRID.runs)] == [None, None]
