"""Times of requests in a result file: the same when read again, small, and read from older files too."""

import json
import random

import pytest
from pydantic import TypeAdapter, ValidationError

from bench.record.steps import save
from bench.serving.load.packed import PackedRequests, pack, unpack
from bench.serving.rates import POINTS
from kernels_tests.bench.samples import a_rate, a_request

LIMIT = 2.5 * 2**20  # of a result file
ADAPTER = TypeAdapter(PackedRequests)


def with_gaps(gaps, **changes):
    times = {"start_ms": 0.25, "ttft_ms": 10.12, "e2e_ms": 20.34, "itl_ms": gaps, "tokens": len(gaps) + 1}
    return a_request(**times | changes)


def test_packed_requests_are_the_same_when_read_again():
    requests = [with_gaps([10.1, 0.0, 123.4]), with_gaps([], ttft_ms=None, error="HTTP 429: x"), with_gaps([0.1] * 30)]
    assert ADAPTER.validate_json(ADAPTER.dump_json(requests)) == requests
    assert pack(requests)["gaps"] == ["101 0 1234", "", " ".join(["1"] * 30)]
    assert ADAPTER.validate_json(ADAPTER.dump_json([])) == []


def test_rows_of_an_older_result_are_read():
    old = json.loads(with_gaps([10.12, 9.87]).model_dump_json()) | {"itl_ms": [10.12, 9.87]}
    (read,) = ADAPTER.validate_python([old])
    assert read == with_gaps([10.1, 9.9])


@pytest.mark.parametrize(
    "changes", [{"gaps": ["1 x"]}, {"gaps": [1]}, {"gaps": []}, {"run": None}, {"more": []}, {"ttft_ms": [-1]}]
)
def test_columns_that_are_no_requests_are_refused(changes):
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(pack([with_gaps([1.0])]) | changes)


def test_unpacked_columns_are_rows():
    assert [row["tokens"] for row in unpack(pack([with_gaps([1.0]), with_gaps([])]))] == [2, 1]


def size(folder, concurrencies, runs, outputs, depths, profiles):
    """Bytes of the rates of a grid, gaps of 5 to 50 ms."""
    chance, path, total = random.Random(1), folder / "rates.json", 0
    for concurrency in concurrencies:
        for output in outputs:
            times = [
                with_gaps([chance.uniform(5, 50) for _ in range(output - 1)], run=run, start_ms=12.34, e2e_ms=4567.89)
                for run in range(1, runs + 1)
                for _ in range(concurrency)
            ]
            rate = a_rate(concurrency=concurrency, decode=[1234.56789012345] * runs)
            first_token_ms = [chance.uniform(10, 100)] * runs * concurrency
            save(path, POINTS, [rate.model_copy(update={"requests": times, "first_token_ms": first_token_ms})])
            total += path.stat().st_size
    return total * depths * profiles


@pytest.mark.parametrize(
    ("concurrencies", "runs", "outputs", "depths"),
    [
        ([1, 4, 16], 3, [128], 3),
        ([1, 2, 4, 8, 16, 32, 64], 3, [128], 3),
        ([1, 4, 16], 10, [32, 128], 5),  # the suites of gpt-oss
    ],
)
def test_a_sweep_of_concurrency_with_three_profiles_fits_into_a_result(tmp_path, concurrencies, runs, outputs, depths):
    assert size(tmp_path, concurrencies, runs, outputs, depths, profiles=3) < LIMIT
