"""Runs of the kernel bench on a fake device: finished, interrupted, resumed, failed in part."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench.cli import bench
from bench.kernels import environment, grid, peers, timing
from bench.kernels import run as runs
from bench.kernels.grid import Point
from bench.kinds import read
from flashinfer_patches.errors import Problem
from lowp.paged import inputs
from lowp.paged.shapes import Shape, even


def run(*options: str):
    return CliRunner().invoke(bench, ["kernels", *options])


def test_a_run_measures_every_kernel(fake_device):
    result, lines = fake_device.execute(fake_device.kernel("a"), fake_device.kernel("b", "bf16"))
    assert [(row.kernel, row.kv_format, row.time_us, row.setting) for row in result.rows] == [
        ("a", "e4m3", 11.0, "right"),
        ("b", "bf16", 11.0, "right"),
    ]
    assert all(1e-3 < row.rel_l2 < 2.5e-3 and row.samples_us == [10.0, 12.0, 11.0] for row in result.rows)
    assert result.rows[0].kv_bytes == 2 * 512 * 1024
    assert [(build.kernel, build.error) for build in result.builds] == [("a", None), ("b", None)]
    assert result.read_ceiling_bytes_per_s == 4e12 and result.cache_wiped_bytes == 0
    assert "2x512 a e4m3: 11.00 us, 2% of the read ceiling, relL2 1.7e-03 (right)" in lines
    assert result.provenance.versions["flashinfer-python"] == "0.6.14"
    assert read(fake_device.folder / "run") == result


def test_the_cache_of_an_interrupted_run_is_wiped_and_every_kernel_built_anew(fake_device):
    cache = fake_device.folder / "run" / "cache"
    first, _ = fake_device.execute(fake_device.kernel("a"))
    assert Path(os.environ["FP8_SINKS_KERNEL_CACHE"]).is_relative_to(cache)
    stale = [cache / "flashinfer" / "flashinfer-0.6.14+x" / "a.so", cache / "lowp" / "b.cubin", cache / "triton" / "c"]
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"12345678")
    (fake_device.folder / "run" / "steps" / "preparation.json").unlink()
    second, lines = fake_device.execute(fake_device.kernel("a"))
    assert first.cache_wiped_bytes == 0 and second.cache_wiped_bytes > 24 and not any(path.exists() for path in stale)
    assert sum(line.startswith("built a e4m3, head_dim 64, bf16 query in") for line in lines) == 1


def test_an_interrupted_run_is_resumed(fake_device):
    shapes = [even(2, 512), even(1, 1024)]
    complete, _ = fake_device.execute(fake_device.kernel("a"), shapes=shapes)
    compiled = fake_device.folder / "run" / "cache" / "flashinfer" / "flashinfer-0.6.14+x" / "a.so"
    compiled.write_bytes(b"12345678")
    (fake_device.folder / "run" / "steps" / "1x1024.json").unlink()
    fake_device.prepared.clear()
    resumed, lines = fake_device.execute(fake_device.kernel("a"), shapes=shapes)
    assert resumed == complete and compiled.exists() and not any(line.startswith("built") for line in lines)
    assert {shape for shape, *_ in fake_device.prepared} == {"1x1024"}
    assert not any(line.startswith("2x512 a e4m3:") for line in lines)
    assert sum(line.startswith("1x1024 a e4m3:") for line in lines) == 1


@pytest.mark.parametrize(
    ("change", "condition"),
    [
        (lambda source: {"machine": source.machine.model_copy(update={"name": "NVIDIA GB10"})}, "GPU NVIDIA GB10"),
        (lambda source: {"versions": source.versions | {"torch": "9.9"}}, "torch 9.9"),
        (lambda _: {"patch": "0.6.14+new"}, r"patch set 0\.6\.14\+new"),
        (lambda _: {"git_commit": "0" * 40}, "commit 0000"),
    ],
)
def test_a_run_is_not_resumed_under_other_conditions(fake_device, change, condition):
    fake_device.execute(fake_device.kernel("a"))
    before = environment.provenance.collect()
    fake_device.patch.setattr(environment.provenance, "collect", lambda *_: before.model_copy(update=change(before)))
    with pytest.raises(Problem, match=rf"this run started with \w[^;]*; now there is {condition}[^,]*$"):
        fake_device.execute(fake_device.kernel("a"))


def test_a_run_is_not_resumed_on_another_gpu_of_the_same_name(fake_device):
    fake_device.execute(fake_device.kernel("a"))
    ceiling = sys.modules["bench.kernels.ceiling"]
    fake_device.patch.setattr(ceiling, "read_ceiling", lambda: 4.03e12)
    fake_device.execute(fake_device.kernel("a"))
    fake_device.patch.setattr(ceiling, "read_ceiling", lambda: 4.1e12)
    with pytest.raises(Problem, match=r"started on a GPU that reads 4\.000 TB/s; this one reads 4\.100 TB/s"):
        fake_device.execute(fake_device.kernel("a"))


def test_builds_for_each_head_dim_and_window(fake_device):
    with_sinks = fake_device.kernel("a", settings=("broken with 128",))
    without_sinks = fake_device.kernel("b", sinks=False)
    shapes = [even(2, 512), even(2, 512, window_left=127), even(2, 512, head_dim=128), even(2, 512, table_tokens=1024)]
    shapes.append(even(2, 512, layout="NHD"))
    result, _ = fake_device.execute(
        with_sinks, without_sinks, fake_device.kernel(peers.OURS, source="lowp"), shapes=shapes
    )
    assert [(build.kernel, build.head_dim, build.windowed, build.error is None) for build in result.builds] == [
        *(("a", 64, False, True), ("a", 64, True, True), ("a", 128, False, False)),
        ("b", 64, False, True),
        *((peers.OURS, 64, False, True), (peers.OURS, 64, True, True), (peers.OURS, 128, False, True)),
    ]
    errors = {(row.kernel, str(row.shape)): row.error for row in result.rows}
    assert errors["a", "2x512"] is errors["a", "2x512w127"] is None and "not built" in errors["a", "2x512d128"]
    assert ("b", "2x512w127") not in errors and ("a", "2x512t1024") not in errors
    assert errors[peers.OURS, "2x512t1024"] is errors[peers.OURS, "2x512NHD"] is None
    assert [(entry.kernel, entry.shape) for entry in result.left_out] == [
        ("a", "2x512t1024"),
        ("a", "2x512NHD"),
        ("b", "2x512w127"),
        ("b", "2x512d128"),
        ("b", "2x512t1024"),
        ("b", "2x512NHD"),
    ]
    assert all(entry.reason for entry in result.left_out)


def test_rows_of_other_shapes_are_measured_right(fake_device):
    shapes = [Shape((300, 16, 100)), even(2, 512, window_left=127), even(1, 512, head_dim=128)]
    result, _ = fake_device.execute(fake_device.kernel("a"), shapes=shapes)
    assert [row.shape for row in result.rows] == shapes
    assert [row.kv_bytes for row in result.rows] == [416 * 1024, 256 * 1024, 512 * 2048]
    assert all(1e-3 < row.rel_l2 < 2.5e-3 for row in result.rows)


def test_served_points_have_compact_rows(fake_device):
    ours, peer = (
        fake_device.kernel(peers.OURS, source="lowp"),
        fake_device.kernel("fa2-sinks", "bf16", ("right", "slow")),
    )
    triton = fake_device.kernel("vllm-triton", source="lowp")
    shape = grid.served(2, 300, "near")
    points = [Point("server", shape), Point("random", shape, peers=False), Point("standard", even(2, 512))]
    result, lines = fake_device.execute(ours, peer, triton, points=points, part="1/2")
    names = [(row.grid, row.kernel) for row in result.rows]
    assert names == [
        *(("server", peers.OURS), ("server", "fa2-sinks"), ("random", peers.OURS)),
        *(("standard", name) for name in (peers.OURS, "fa2-sinks", "vllm-triton")),
    ]
    for row in result.rows[:3]:
        assert (row.shape, row.time_us, row.between_us, row.samples_us) == (shape, 11.0, 13.0, [])
        assert 1e-3 < row.rel_l2 < 2.5e-3
    assert [row.setting for row in result.rows[:3]] == [None, "right", None]
    assert result.rows[3].between_us is None and result.part == "1/2" and result.left_out == []
    assert any("13.00 us between additions" in line for line in lines)
    steps = {path.name for path in (fake_device.folder / "run" / "steps").iterdir()}
    assert {f"server-{shape}.json", f"random-{shape}.json", "2x512.json"} < steps
    fake_device.prepared.clear()
    assert fake_device.execute(ours, peer, triton, points=points, part="1/2")[0] == result
    assert fake_device.prepared == [] and read(fake_device.folder / "run") == result


def test_served_points_are_measured_in_int8(fake_device):
    ours = [fake_device.kernel(peers.OURS, name, source="lowp") for name in ("int8", "int8-static")]
    shape = grid.served(2, 300, "near")
    points = [Point("server", shape, peers=False), Point("random", shape, peers=False)]
    rows = fake_device.execute(*ours, points=points)[0].rows
    formats = [("server", "int8"), ("random", "int8"), ("random", "int8-static")]
    assert [(row.grid, row.kv_format) for row in rows] == formats
    assert [row.kv_bytes // shape.tokens for row in rows] == [8 * 136, 8 * 136, 8 * 128]
    assert all(row.error is None and 1e-3 < row.rel_l2 < 2.5e-3 for row in rows)


def test_a_missing_vllm_is_skipped(fake_device):
    result, lines = fake_device.execute(fake_device.kernel("a"), fake_device.kernel("vllm-fa3", source="vllm"))
    (skipped,) = result.left_out
    assert (skipped.kernel, skipped.shape, skipped.reason) == ("vllm-fa3", None, "vLLM is not installed")
    assert {row.kernel for row in result.rows} == {build.kernel for build in result.builds} == {"a"}
    assert f"vllm-fa3 e4m3 is skipped: {skipped.reason}" in lines


def test_a_vllm_without_the_kernel_is_skipped_or_refused_by_name(fake_device):
    fake_device.patch.setattr(runs.vllm_peers, "find_spec", lambda _name: object())
    for name in {"vllm", *(name for name in sys.modules if name.startswith("vllm."))}:  # other tests import them
        fake_device.patch.setitem(sys.modules, name, None)
    kernel = fake_device.kernel("vllm-triton", source="vllm")
    result, _ = fake_device.execute(kernel, fake_device.kernel("a"))
    assert "vLLM's kernel cannot be imported: ModuleNotFoundError" in result.left_out[0].reason
    with pytest.raises(Problem, match="vllm-triton cannot be measured: vLLM's kernel cannot be imported"):
        fake_device.execute(kernel, named=True, folder="by name")


def test_our_kernel_alone_needs_no_flashinfer(fake_device):
    fake_device.patch.setattr(runs.package, "installed", lambda: None)
    result, _ = fake_device.execute(fake_device.kernel(peers.OURS, source="lowp"))
    assert result.rows[0].error is None and "flashinfer-python" not in result.provenance.versions


def test_a_flashinfer_that_cannot_be_imported_ends_the_run(fake_device):
    fake_device.patch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(Problem, match="FlashInfer cannot be imported: ModuleNotFoundError"):
        fake_device.execute(fake_device.kernel("a"))


def test_a_failed_kernel_keeps_its_rows(fake_device):
    broken = fake_device.kernel("b", settings=("broken",))
    result, lines = fake_device.execute(fake_device.kernel("a"), broken, shapes=[even(2, 512), even(1, 1024)])
    assert [(row.kernel, row.error is None) for row in result.rows] == [("a", True), ("b", False)] * 2
    assert result.rows[1].error.startswith("not built: RuntimeError: cannot at 1x16 in $TMP/")
    assert result.builds[1].seconds is None and "cannot at 1x16" in result.builds[1].error
    assert any(line.startswith("2x512 b e4m3: FAILED: not built") for line in lines)


def test_an_output_that_was_not_written_is_an_error(fake_device):
    result, _ = fake_device.execute(fake_device.kernel("a", settings=("right", "lazy")))
    assert result.rows[0].error == ("ArithmeticError: with lazy the output has NaN or infinity, or was not written")


def test_rows_after_a_dead_gpu_have_their_own_error(fake_device):
    def explode(*_):
        fake_device.patch.setattr(torch.cuda, "synchronize", explode)
        raise RuntimeError("an illegal memory access was encountered")

    fake_device.patch.setattr(timing, "graph_us", explode)
    shapes = [even(2, 512), even(1, 1024)]
    result, _ = fake_device.execute(fake_device.kernel("a"), fake_device.kernel("b"), shapes=shapes)
    errors = [row.error for row in result.rows]
    assert errors[0] == "RuntimeError: an illegal memory access was encountered"
    assert errors[1:] == ["not run: a e4m3 at 2x512 left the GPU unusable for this process"] * 3
    steps = fake_device.folder / "run" / "steps"
    assert (steps / "2x512.json").exists() and not (steps / "1x1024.json").exists(), "another process can measure it"


def test_inputs_that_do_not_fit_fail_that_shape_alone(fake_device):
    build = inputs.build

    def too_large(shape, layers, kv_formats):
        if shape == even(4, 2048):
            raise RuntimeError("out of memory")
        return build(shape, layers, kv_formats)

    fake_device.patch.setattr(inputs, "build", too_large)
    result, _ = fake_device.execute(fake_device.kernel("a"), shapes=[even(4, 2048), even(2, 512)])
    assert [row.error for row in result.rows] == ["no inputs: RuntimeError: out of memory", None]


def test_the_command_writes_result_and_report_and_can_be_interrupted(fake_device):
    finished = []

    def graph_us(calls, _clear):
        for call in calls:
            call()
        if finished:
            raise KeyboardInterrupt
        finished.append(True)
        return [10.0, 12.0, 11.0]

    fake_device.patch.setattr(timing, "graph_us", graph_us)
    fake_device.patch.setattr(peers, "KERNELS", [fake_device.kernel(peers.OURS, source="lowp")])
    folder = fake_device.folder / "a run"
    first = run("--run-dir", str(folder), "--shape", "2x512", "--shape", "1x1024", "--json")
    assert first.exit_code != 0 and first.stdout == "" and not (folder / "result.json").exists()
    assert f"resume: fp8-sinks bench kernels --resume '{folder}'" in first.stderr
    assert [path.name for path in sorted((folder / "steps").iterdir())] == ["2x512.json", "preparation.json"]
    fake_device.patch.setattr(timing, "graph_us", lambda calls, _clear: [[20.0], [call() for call in calls]][0])
    resumed = run("--resume", str(folder), "--json")
    assert resumed.exit_code == 0, resumed.output
    rows = json.loads(resumed.stdout)["rows"]
    assert [(row["batch"], row["time_us"]) for row in rows] == [(2, 11.0), (1, 20.0)]
    assert json.loads((folder / "result.json").read_text()) == json.loads(resumed.stdout)
    assert peers.OURS in (folder / "report.md").read_text()
