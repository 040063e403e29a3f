"""Gates of a static-cache result, and its section."""

import pytest

from bench.static_cache.gates import gates
from bench.static_cache.section import section
from bench.static_cache.shapes import BF16, FRAME_POINTS, FRAME_STORAGES, INT8, POINTS, STORAGES, window_bytes
from kernels_tests.bench.static_cache.samples import a_failed_row, a_row, a_static_cache_result, rows

POINT = POINTS[0]


def verdicts(changed=None, **changes) -> dict[str, str]:
    """Return the verdicts by gate; `changed`: of rows for which it is true, `changes` replace fields."""
    results = [row.model_copy(update=changes) if changed and changed(row) else row for row in rows()]
    return {gate.name: gate.verdict for gate in gates(a_static_cache_result(results))}


def of_fused(name, point=POINT):
    return lambda row: (row.backend, row.part, row.storage, row.point) == ("triton", "attention", name, point)


def test_all_pass():
    assert set(verdicts().values()) == {"passed"}
    assert len(verdicts()) == len(FRAME_STORAGES) * len(FRAME_POINTS) + 4 * len(POINTS) + 1 + 5


@pytest.mark.parametrize(
    ("us", "spread", "expected"), [(60.0, 0.0, "passed"), (90.0, 0.01, "FAILED"), (80.0, 0.2, "undecided")]
)
def test_a_ratio_is_judged_by_its_samples(us, spread, expected):
    samples = [us * (1 - spread), us, us * (1 + spread)]
    judged = verdicts(of_fused(INT8), samples_us=samples, time_us=us)
    assert judged[f"attention {POINT}, {INT8}, BF16 flex over fused"] == expected


def test_a_long_frame_may_be_a_little_slower():
    point = POINTS[2]
    name = f"attention {point}, {INT8}, BF16 flex over fused"
    assert point.frame_tokens == 256
    for us, expected in ((99.0, "passed"), (110.0, "FAILED")):
        assert verdicts(of_fused(INT8, point), samples_us=[us], time_us=us)[name] == expected


def test_a_frame_must_be_three_times_as_fast():
    def is_ring(row):
        return (row.part, row.design) == ("frame", "ring")

    judged = verdicts(is_ring, samples_us=[400.0], time_us=400.0)
    frames = {name: verdict for name, verdict in judged.items() if name.startswith("frame")}
    assert len(frames) == 4 and set(frames.values()) == {"FAILED"}


def test_memory_of_a_step():
    limit = window_bytes(STORAGES[BF16], POINT.window) / 10
    name = "memory of a step above the resident cache"
    assert verdicts(of_fused(INT8), peak_bytes=int(limit))[name] == "passed"
    assert verdicts(of_fused(INT8), peak_bytes=int(limit) + 1)[name] == "FAILED"


def test_failed_rows_are_not_run():
    results = [
        a_failed_row("attention", "ring", "triton", INT8, POINT),
        a_row("attention", "ring", "flex", BF16, POINT),
    ]
    result = a_static_cache_result(results)
    judged = {gate.name: gate.verdict for gate in gates(result)}
    assert judged[f"attention {POINT}, {INT8}, BF16 flex over fused"] == "not run"
    assert judged["memory of a step above the resident cache"] == "not run"
    assert any("no | such dtype" in line for line in section(result).not_measured)


def test_a_section_has_a_line_for_each_measurement():
    result = a_static_cache_result()
    text = "\n".join(section(result).details)
    assert sum(text.count(f"{row}, ") for row in ("| ring", "| rolled")) == len(result.rows)
    assert "1.67x" in text and "5.00x" in text
