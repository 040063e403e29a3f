"""Whole runs of the kernel bench on a pretended device: kept, cut off, resumed, failed in part."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench.cli import bench
from bench.kernels import grid, peers, timing
from bench.kernels import run as runs
from flashinfer_patches.errors import Problem
from kernels_tests.bench.conftest import refused
from lowp.paged import inputs
from lowp.paged.shapes import Shape, even


def run(*words: str):
    return CliRunner().invoke(bench, ["kernels", *words])


def test_a_whole_run(fake_device):
    result, said = fake_device.execute(fake_device.kernel("a"), fake_device.kernel("b", "bf16"))
    assert [(row.kernel, row.kv_format, row.time_us, row.setting) for row in result.rows] == [
        ("a", "e4m3", 11.0, "right"),
        ("b", "bf16", 11.0, "right"),
    ]
    assert all(1e-3 < row.rel_l2 < 2.5e-3 and row.samples_us == [10.0, 12.0, 11.0] for row in result.rows)
    assert result.rows[0].kv_bytes == 2 * 512 * 1024
    assert [(one.kernel, one.error) for one in result.builds] == [("a", None), ("b", None)]
    assert result.read_ceiling_bytes_per_s == 4e12 and result.cache_wiped_bytes == 0
    tolerance = {(one.kernel, one.batch, one.context): one for one in result.tolerance}
    assert len(tolerance) == 2 * 4 and {key[1:] for key in tolerance} == {(1, 128), (1, 1024), (4, 128), (4, 1024)}
    assert all(one.missed_stored == 0 for one in result.tolerance)
    assert tolerance["a", 1, 128].missed_bf16 > 0.3 and tolerance["b", 1, 128].missed_bf16 == 0
    assert "2x512 a e4m3: 11.00 us, 2% of the read ceiling, relL2 1.7e-03 (right)" in said
    assert result.provenance.versions["flashinfer-python"] == "0.6.14"


def test_a_cache_that_a_cut_off_run_left_is_wiped_and_every_kernel_built_anew(fake_device):
    cache = fake_device.folder / "run" / "cache"
    first, _ = fake_device.execute(fake_device.kernel("a"))
    assert Path(os.environ["FP8_SINKS_KERNEL_CACHE"]).is_relative_to(cache)
    left = [cache / "flashinfer" / "flashinfer-0.6.14+x" / "a.so", cache / "lowp" / "b.cubin", cache / "triton" / "c"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"12345678")
    (fake_device.folder / "run" / "steps" / "begun.json").unlink()
    second, said = fake_device.execute(fake_device.kernel("a"))
    assert first.cache_wiped_bytes == 0 and second.cache_wiped_bytes > 24 and not any(path.exists() for path in left)
    assert sum(line.startswith("built a e4m3, head_dim 64 in") for line in said) == 1


def test_a_run_that_was_cut_off_goes_on(fake_device):
    shapes = [even(2, 512), even(1, 1024)]
    whole, _ = fake_device.execute(fake_device.kernel("a"), shapes=shapes)
    kept = fake_device.folder / "run" / "cache" / "flashinfer" / "flashinfer-0.6.14+x" / "a.so"
    kept.write_bytes(b"12345678")
    (fake_device.folder / "run" / "steps" / "1x1024.json").unlink()
    fake_device.prepared.clear()
    again, said = fake_device.execute(fake_device.kernel("a"), shapes=shapes)
    assert again == whole and kept.exists() and not any(line.startswith("built") for line in said)
    timed = [shape for shape, *_ in fake_device.prepared if shape not in map(str, grid.PLAN_SHAPES)]
    assert timed == [] and fake_device.prepared[0][0] == "1x1024"
    assert not any(line.startswith("2x512 a e4m3:") for line in said)
    assert sum(line.startswith("1x1024 a e4m3:") for line in said) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one: {"machine": one.machine.model_copy(update={"name": "NVIDIA GB10"})}, "GPU NVIDIA GB10"),
        (lambda one: {"versions": one.versions | {"torch": "9.9"}}, "torch 9.9"),
        (lambda _: {"patch": "0.6.14+new"}, r"patch set 0\.6\.14\+new"),
        (lambda _: {"git_commit": "0" * 40}, "commit 0000"),
    ],
)
def test_a_run_does_not_go_on_where_times_would_be_others(fake_device, change, words):
    fake_device.execute(fake_device.kernel("a"))
    began = runs.provenance.collect()
    fake_device.patch.setattr(runs.provenance, "collect", lambda *_: began.model_copy(update=change(began)))
    with pytest.raises(Problem, match=rf"this run began with \w[^;]*; here is {words}[^,]*$"):
        fake_device.execute(fake_device.kernel("a"))


def test_a_run_does_not_go_on_with_another_gpu_of_the_same_name(fake_device):
    fake_device.execute(fake_device.kernel("a"))
    ceiling = sys.modules["bench.kernels.ceiling"]
    fake_device.patch.setattr(ceiling, "read_ceiling", lambda: 4.03e12)
    fake_device.execute(fake_device.kernel("a"))
    fake_device.patch.setattr(ceiling, "read_ceiling", lambda: 4.1e12)
    with pytest.raises(Problem, match=r"began on a GPU that reads 4\.000 TB/s; this one reads 4\.100 TB/s"):
        fake_device.execute(fake_device.kernel("a"))


def test_builds_for_each_head_dim_and_window(fake_device):
    whole = fake_device.kernel("a", settings=("broken with 128",))
    bare = fake_device.kernel("b", sinks=False)
    shapes = [even(2, 512), even(2, 512, window_left=127), even(2, 512, head_dim=128), even(2, 512, table_tokens=1024)]
    shapes.append(even(2, 512, layout="NHD"))
    result, _ = fake_device.execute(whole, bare, fake_device.kernel(peers.OURS, source="lowp"), shapes=shapes)
    assert [(one.kernel, one.head_dim, one.windowed, one.error is None) for one in result.builds] == [
        *(("a", 64, False, True), ("a", 64, True, True), ("a", 128, False, False)),
        ("b", 64, False, True),
        *((peers.OURS, 64, False, True), (peers.OURS, 64, True, True), (peers.OURS, 128, False, True)),
    ]
    errors = {(row.kernel, str(row.shape)): row.error for row in result.rows}
    assert errors["a", "2x512"] is errors["a", "2x512w127"] is None and "not built" in errors["a", "2x512d128"]
    assert ("b", "2x512w127") not in errors and ("a", "2x512t1024") not in errors
    assert errors[peers.OURS, "2x512t1024"] is errors[peers.OURS, "2x512NHD"] is None
    assert [(one.kernel, one.shape) for one in result.left_out] == [
        ("a", "2x512t1024"),
        ("a", "2x512NHD"),
        ("b", "2x512w127"),
        ("b", "2x512d128"),
        ("b", "2x512t1024"),
        ("b", "2x512NHD"),
    ]
    assert all(one.reason for one in result.left_out)


def test_rows_of_other_shapes_are_measured_right(fake_device):
    shapes = [Shape((300, 16, 100)), even(2, 512, window_left=127), even(1, 512, head_dim=128)]
    result, _ = fake_device.execute(fake_device.kernel("a"), shapes=shapes)
    assert [row.shape for row in result.rows] == shapes
    assert [row.kv_bytes for row in result.rows] == [416 * 1024, 256 * 1024, 512 * 2048]
    assert all(1e-3 < row.rel_l2 < 2.5e-3 for row in result.rows)


def test_vllm_that_is_missing_is_left_out_by_name_or_refused_where_it_was_asked_for(fake_device):
    kernels = fake_device.kernel("a"), fake_device.kernel("vllm-fa3", source="vllm")
    result, said = fake_device.execute(*kernels)
    assert [(one.kernel, one.shape, one.reason) for one in result.left_out] == [
        ("vllm-fa3", None, "vLLM is not installed")
    ]
    assert {row.kernel for row in result.rows} == {one.kernel for one in result.builds} == {"a"}
    assert "vllm-fa3 e4m3 is left out: vLLM is not installed" in said
    assert "vllm-fa3 cannot be measured: vLLM is not installed" in refused(kernels, named=True).message
    runs.check(kernels[:1], named=True)


def test_a_vllm_without_the_kernel_is_left_out_too(fake_device):
    fake_device.patch.setattr(runs.vllm_peers, "find_spec", lambda _name: object())
    fake_device.patch.setitem(sys.modules, "vllm", None)
    kernel = fake_device.kernel("vllm-triton", source="vllm")
    result, _ = fake_device.execute(kernel, fake_device.kernel("a"))
    assert "vLLM's kernel cannot be imported: ModuleNotFoundError" in result.left_out[0].reason
    (fake_device.folder / "run" / "steps" / "begun.json").unlink()
    with pytest.raises(Problem, match="vllm-triton cannot be measured: vLLM's kernel cannot be imported"):
        fake_device.execute(kernel, named=True)


def test_our_kernel_alone_needs_no_flashinfer(fake_device):
    fake_device.patch.setattr(runs.package, "installed", lambda: None)
    result, _ = fake_device.execute(fake_device.kernel(peers.OURS, source="lowp"))
    assert result.rows[0].error is None and "flashinfer-python" not in result.provenance.versions


def test_a_flashinfer_that_cannot_be_imported_is_one_error(fake_device):
    fake_device.patch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(Problem, match="FlashInfer cannot be imported: ModuleNotFoundError"):
        fake_device.execute(fake_device.kernel("a"))


def test_a_failed_kernel_keeps_its_rows(fake_device):
    broken = fake_device.kernel("b", settings=("broken",))
    result, said = fake_device.execute(fake_device.kernel("a"), broken, shapes=[even(2, 512), even(1, 1024)])
    assert [(row.kernel, row.error is None) for row in result.rows] == [("a", True), ("b", False)] * 2
    assert result.rows[1].error.startswith("not built: RuntimeError: cannot at 1x16 in $TMP/")
    assert result.builds[1].seconds is None and "cannot at 1x16" in result.builds[1].error
    assert any(line.startswith("2x512 b e4m3: FAILED: not built") for line in said)
    assert {one.kernel for one in result.tolerance} == {"a"}


def test_an_output_that_was_not_written_is_an_error(fake_device):
    result, _ = fake_device.execute(fake_device.kernel("a", settings=("right", "lazy")))
    assert result.rows[0].error == ("ArithmeticError: with lazy the output holds NaN or infinity, or was not written")


def test_what_comes_after_a_dead_gpu_does_not_carry_its_error(fake_device):
    def explode(*_):
        fake_device.patch.setattr(torch.cuda, "synchronize", explode)
        raise RuntimeError("an illegal memory access was encountered")

    fake_device.patch.setattr(timing, "graph_us", explode)
    shapes = [even(2, 512), even(1, 1024)]
    result, _ = fake_device.execute(fake_device.kernel("a"), fake_device.kernel("b"), shapes=shapes)
    errors = [row.error for row in result.rows]
    assert errors[0] == "RuntimeError: an illegal memory access was encountered"
    assert errors[1:] == ["not run: a e4m3 at 2x512 left the GPU unusable for this process"] * 3
    assert result.tolerance == []
    steps = fake_device.folder / "run" / "steps"
    assert (steps / "2x512.json").exists() and not (steps / "1x1024.json").exists(), "another process can measure it"


def test_inputs_that_do_not_fit_fail_that_shape_alone(fake_device):
    build = inputs.build

    def too_large(shape, layers):
        if shape == even(4, 2048):
            raise RuntimeError("out of memory")
        return build(shape, layers)

    fake_device.patch.setattr(inputs, "build", too_large)
    result, _ = fake_device.execute(fake_device.kernel("a"), shapes=[even(4, 2048), even(2, 512)])
    assert [row.error for row in result.rows] == ["no inputs: RuntimeError: out of memory", None]


def test_the_command_writes_result_and_report_and_can_be_cut_off(fake_device):
    cut = []

    def graph_us(calls, _clear):
        for call in calls:
            call()
        if cut:
            raise KeyboardInterrupt
        cut.append(True)
        return [10.0, 12.0, 11.0]

    fake_device.patch.setattr(timing, "graph_us", graph_us)
    fake_device.patch.setattr(peers, "KERNELS", [fake_device.kernel(peers.OURS, source="lowp")])
    folder = fake_device.folder / "a run"
    words = ["--run-dir", str(folder), "--shape", "2x512", "--shape", "1x1024"]
    first = run(*words, "--json")
    assert first.exit_code != 0 and first.stdout == "" and not (folder / "result.json").exists()
    assert f"resume: fp8-sinks bench kernels --resume '{folder}'" in first.stderr
    assert [path.name for path in sorted((folder / "steps").iterdir())] == ["2x512.json", "begun.json"]
    fake_device.patch.setattr(timing, "graph_us", lambda calls, _clear: [[20.0], [call() for call in calls]][0])
    done = run("--resume", str(folder), "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert [(row["batch"], row["time_us"]) for row in rows] == [(2, 11.0), (1, 20.0)]
    assert json.loads((folder / "result.json").read_text()) == json.loads(done.stdout)
    assert "sink-decode e4m3 within the law" in (folder / "report.md").read_text()


def test_a_cache_folder_that_no_run_made_stays(fake_device):
    theirs = fake_device.folder / "run" / "cache" / "vllm" / "file"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    with pytest.raises(Problem, match="was not made by a run"):
        fake_device.execute(fake_device.kernel("k"))
    assert theirs.read_text() == "theirs"
