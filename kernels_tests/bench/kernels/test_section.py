"""The report of a kernels result: what it says of FP8, what it shows, and that it stands beside other kinds."""

from itertools import pairwise

import pytest

from bench.kernels import gain
from bench.kernels import plot as kernels_plot
from bench.kernels.result import Skipped
from bench.kernels.shape import even
from bench.record.files import write
from bench.report import document
from kernels_tests.bench.kernels.samples import (
    a_failed_row,
    a_kernel_row,
    a_kernels_result,
    fa2_rows,
    our_rows,
)
from kernels_tests.bench.samples import two_profiles


def text_of(result) -> str:
    return document.markdown([result], {})


def message(*rows) -> str:
    return gain.message(a_kernels_result(*rows), "fa2-sinks")


def test_where_fp8_is_slower_and_from_where_it_pays():
    assert message() == (
        "FP8 through fa2-sinks: slower than BF16 at 1 x 2,048 (14.0 us against 10.0) and 1 x 8,192 (18.0 us against"
        " 15.0); pays from a context of 32,768 tokens with 1 request at once; pays at every measured context with 8"
        " requests at once; at best 1.29x as fast; relL2 at most 2.3e-03, with BF16 2.3e-03"
    )


def test_the_title_is_short():
    result = a_kernels_result()
    said = "FP8 through fa2-sinks: slower than BF16 at 1 x 2,048 and 1 x 8,192; at best 1.29x as fast"
    assert kernels_plot.title(result) == said
    many = [row for context in range(1024, 5120, 1024) for row in pair(context, 10, 12)]
    assert "slower than BF16 at 4 of 4 shapes; at best 0.83x as fast" in kernels_plot.title(a_kernels_result(*many))


def pair(context, bf16, e4m3, batch=1, **changes):
    shape = even(batch, context)
    return [a_kernel_row(shape, us=bf16, **changes), a_kernel_row(shape, kv_format="e4m3", us=e4m3, **changes)]


def test_it_pays_from_after_the_last_context_where_it_does_not():
    rows = [*pair(1024, 10, 8), *pair(2048, 10, 12), *pair(4096, 20, 15), *pair(8192, 40, 30)]
    for order in (rows, rows[::-1]):
        assert gain.pays_from(gain.gains(a_kernels_result(*order), "fa2-sinks")) == {1: 4096}
    assert gain.pays_from(gain.gains(a_kernels_result(*rows[:4]), "fa2-sinks")) == {1: None}
    assert "does not pay at the longest measured context with 1 request at once" in message(*rows[:4])


def test_samples_that_overlap_are_no_difference():
    near = pair(2048, 10.0, 10.1)
    assert "slower than BF16 at no measured shape; does not pay" in message(*near)
    apart = pair(2048, 10.0, 10.1, spread=0.001)
    assert "slower than BF16 at 1 x 2,048 (10.1 us against 10.0)" in message(*apart)


def test_a_failed_side_is_not_compared():
    result = a_kernels_result(a_kernel_row(even(1, 2048)), a_failed_row(even(1, 2048), "fa2-sinks"))
    assert gain.compared(result) == []
    assert "FP8 through" not in text_of(result)


def test_tables_show_time_floor_and_error():
    shape = even(1, 131072)
    rows = [
        a_kernel_row(shape, us=84.0),
        a_kernel_row(shape, kv_format="e4m3", us=65.0),
        a_kernel_row(shape, "xqa-sinks", "e4m3", us=110.0, rel_l2=3.6e-2),
        a_failed_row(even(1, 2048), "xqa-sinks"),
    ]
    text = text_of(a_kernels_result(*rows))
    e4m3, bf16 = text.index("### All kernels, e4m3 cache"), text.index("### All kernels, bf16 cache")
    lines = [line for line in text[e4m3:bf16].splitlines() if line.startswith("|")]
    # 134,217,728 bytes at 4.4 TB/s take 30.5 us.
    assert lines[0] == "| batch x context | floor, us | fa2-sinks | xqa-sinks |"
    assert lines[2] == "| 1 x 131,072 | 30.5 | 65.0, 2.3e-03 | 110, **3.6e-02** |"
    assert lines[3] == "| 1 x 2,048 | 0.48 | not measured | **failed** |"
    assert "| 1 x 131,072 | 61.0 | 84.0, 2.3e-03 |" in text[bf16:]
    assert r"- **Failed:** xqa-sinks e4m3 at 1 x 2,048: RuntimeError: no \| such kernel" in text
    assert "Read ceiling of this run: 4.40 TB/s. 64 query heads over 8 KV heads of 64 values" in text
    assert "against the law" not in text and "own BF16" not in text and "### Not measured" not in text
    assert r"| xqa-sinks e4m3 | **failed**: RuntimeError: nvcc \| not found |" in text
    assert "| fa2-sinks e4m3 | 21.3 |" in text
    assert "| FlashInfer patch set | 0.6.14+0123456789ab |" in text


def test_failures_of_one_kind_are_one_line():
    shapes = [even(batch, 2048) for batch in (1, 2, 3, 4)]
    text = text_of(a_kernels_result(*fa2_rows(), *map(a_failed_row, shapes[:3])))
    assert "- **Failed:** xqa-sinks e4m3 at 1 x 2,048; 2 x 2,048; 3 x 2,048: RuntimeError" in text
    assert "xqa-sinks e4m3 at 4 shapes: RuntimeError" in text_of(a_kernels_result(*map(a_failed_row, shapes)))


def test_other_shapes_are_no_part_of_where_fp8_pays():
    odd = pair(2048, 10, 5, window_left=127) + pair(2048, 10, 5, head_dim=128) + pair(2048, 10, 5, table_tokens=4096)
    odd += pair(2048, 10, 5, batch=2, lengths=[2048, 16])
    assert message(*pair(2048, 10, 12), *odd) == message(*pair(2048, 10, 12))
    assert gain.compared(a_kernels_result(*odd)) == []


def test_many_slower_shapes_are_counted():
    rows = [row for context in range(1024, 8192, 1024) for row in pair(context, 10, 12)]
    assert "slower than BF16 at 7 of 7 shapes; does not pay" in message(*rows)


def left_out(kernel, shape, reason) -> Skipped:
    return Skipped(kernel=kernel, kv_format="e4m3", shape=shape, reason=reason)


def test_what_was_left_out_is_said():
    some = [left_out("a", shape, "cannot") for shape in ("1x2", "3x4")]
    some += [left_out("b", shape, "cannot") for shape in ("1x2", "3x4")]
    text = text_of(a_kernels_result(left_out=[*some, left_out("vllm-fa3", None, "no vLLM")]))
    assert "| a e4m3, b e4m3 | 1x2, 3x4 | cannot |" in text and "| vllm-fa3 e4m3 | all shapes | no vLLM |" in text
    assert "- **Left out:** vllm-fa3 e4m3: no vLLM" in text and "- **Left out:** a" not in text


def test_tables_are_whole():
    rows = [*fa2_rows(), *our_rows(), a_failed_row(even(1, 2048))]
    for above, below in pairwise(text_of(a_kernels_result(*rows, left_out=[left_out("a", None, "b")])).splitlines()):
        if above.startswith("|") and below.startswith("|"):
            bars = [line.replace(r"\|", "").count("|") for line in (above, below)]
            assert bars[0] == bars[1], (above, below)


def test_it_stands_beside_a_serving_result(tmp_path):
    write(a_kernels_result(), tmp_path / "a.json")
    write(two_profiles(), tmp_path / "b.json")
    written = []
    for folder, order in (("one", "ab"), ("two", "ba")):
        document.write([tmp_path / f"{name}.json" for name in order], tmp_path / folder)
        found = sorted(path for path in (tmp_path / folder).rglob("*") if path.is_file())
        written.append({path.relative_to(tmp_path / folder).as_posix(): path.read_bytes() for path in found})
    assert written[0] == written[1]
    text = written[0]["BENCHMARK_RESULTS.md"].decode()
    assert "## Decode kernels on NVIDIA H200, FlashInfer 0.6.14, 2026-07-02" in text
    assert "## tiny_gpt_oss on a CPU" in text
    assert "](plots/20260702-120000-kernels.png)" in text and "plots/20260702-120000-kernels.png" in written[0]
    readme = tmp_path / "README.md"
    readme.write_text(f"{document.GLANCE_BEGIN}\n{document.GLANCE_END}\n")
    document.write_glance([tmp_path / "a.json", tmp_path / "b.json"], readme)
    assert "- **FP8 through fa2-sinks:** slower than BF16 at 1 x 2,048" in readme.read_text()


def test_servers_come_before_kernels(tmp_path):
    write(a_kernels_result(*our_rows()), tmp_path / "newer.json")
    write(two_profiles(), tmp_path / "older.json")
    text = document.write([tmp_path / "newer.json", tmp_path / "older.json"], tmp_path).read_text()
    assert text.index("## tiny_gpt_oss") < text.index("## Decode kernels")
    assert "the law is 3.5 us + bytes / (0.93 x read ceiling)" in text


@pytest.mark.parametrize(("rows", "plots"), [([a_failed_row(even(1, 2048))], 0), (fa2_rows(), 1)])
def test_a_plot_only_of_what_was_measured(tmp_path, rows, plots):
    write(a_kernels_result(*rows), tmp_path / "a.json")
    text = document.write([tmp_path / "a.json"], tmp_path).read_text()
    assert len(list(tmp_path.glob("plots/*.png"))) == plots == text.count("![")


def test_other_times_give_another_plot(tmp_path):
    drawn = []
    for name, us in (("one", 10.0), ("two", 10.4)):
        rows = [a_kernel_row(even(1, 2048), us=us), *fa2_rows()[1:]]
        write(a_kernels_result(*rows), tmp_path / f"{name}.json")
        document.write([tmp_path / f"{name}.json"], tmp_path / name)
        drawn.append((tmp_path / name / "plots" / "20260702-120000-kernels.png").read_bytes())
    assert drawn[0] != drawn[1]
