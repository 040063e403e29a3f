"""The kernel bench without a GPU: bytes, inputs, the exact answer, timing, statistics, refusals, one whole run."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from pydantic import ValidationError

from bench.cli import bench
from bench.kernels import exact, grid, inputs, measure, peers, timing
from bench.kernels.grid import GEOMETRY, Shape
from bench.kernels.result import KernelRow
from bench.result import read, write
from flashinfer_patches.state import Status
from kernels_tests.bench.kernel_samples import a_failed_row, a_kernel_row, a_kernels_result
from kernels_tests.bench.samples import a_result
from kernels_tests.flashinfer_patches import cases
from vllm_launch.errors import EXIT_CODES, Problem

NO_GPU = LookupError("no NVIDIA driver answers")


def test_bytes_of_the_grid():
    # 2 (keys and values) x 8 KV heads x 64 values a token.
    assert grid.kv_bytes(Shape(1, 1), "e4m3") == 1024 and grid.kv_bytes(Shape(1, 1), "bf16") == 2048
    assert grid.kv_bytes(Shape(64, 8192), "e4m3") == 536_870_912
    assert len(grid.GRID) == 9 and len(set(grid.GRID)) == 9


@pytest.mark.parametrize("shape", grid.GRID, ids=str)
def test_layers_rotate_through_enough_memory(shape):
    layers = grid.layers(shape)
    assert layers >= 2
    assert layers * grid.kv_bytes(shape, "e4m3") >= 400_000_000
    assert layers == 2 or (layers - 1) * grid.kv_bytes(shape, "e4m3") < 400_000_000


def test_shapes_are_parsed_or_refused():
    assert grid.parse("8x8192") == Shape(8, 8192)
    for text in ("8", "8x", "x8", "0x8192", "8x08192", "1x128", "1x99999999", "8 x 8192"):
        with pytest.raises(ValueError, match=r"BATCHxCONTEXT such as 8x8192, 1,024 to 8,388,608 tokens"):
            grid.parse(text)


@pytest.fixture(scope="module")
def small() -> inputs.Inputs:
    return inputs.build(Shape(6, 100), layers=3, device="cpu")


def test_inputs_hold_the_same_values_in_every_format(small):
    assert len(small.q) == len(small.out) == 3
    for (k16, v16), (k8, v8) in zip(small.caches["bf16"], small.caches["e4m3"], strict=True):
        assert k16.shape == (6 * 7, 8, 16, 64) and k16.dtype == torch.bfloat16 and k8.dtype == torch.float8_e4m3fn
        assert torch.equal(k8.view(torch.uint8), k16.to(torch.float8_e4m3fn).view(torch.uint8))
        assert torch.equal(v8.view(torch.uint8), v16.to(torch.float8_e4m3fn).view(torch.uint8))
    pages = small.block_table.flatten()
    assert sorted(pages.tolist()) == list(range(42)) and pages.tolist() != list(range(42))
    assert not torch.equal(small.q[0], small.q[1])
    again = inputs.build(Shape(6, 100), layers=3, device="cpu")
    assert torch.equal(again.q[2], small.q[2]) and torch.equal(again.block_table, small.block_table)


@pytest.mark.parametrize("kv_format", ["bf16", "e4m3"])
@pytest.mark.parametrize("sinks", [True, False])
def test_the_exact_answer_is_that_of_the_patches_tests(small, kv_format, sinks):
    """Two formulas written apart, on the same tokens."""
    k, v = (
        cache[small.block_table.long()].transpose(2, 3).reshape(6, -1, 8, 64)[:, :100].double()
        for cache in small.caches[kv_format][1]
    )
    expected, lse = cases.reference(small.q[1], list(zip(k, v, strict=True)), small.sinks if sinks else None)
    for row in range(6):
        got = exact.attention(small, kv_format, 1, row, sinks=sinks)
        torch.testing.assert_close(got, expected[row], rtol=1e-9, atol=1e-12)
    # The sinks are near the log-sum-exp: dropping them must show.
    share = torch.exp2(small.sinks / math.log(2) - lse) if sinks else torch.full((1,), 0.5)
    assert 0.2 < share.mean() < 0.8


def test_only_the_first_and_last_are_looked_at():
    assert exact.looked_at(128, 4) == [0, 1, 126, 127]
    assert exact.looked_at(3, 4) == [0, 1, 2]
    assert exact.looked_at(191, 2) == [0, 190]
    assert exact.looked_at(1, 2) == [0]


def test_an_output_that_is_right_in_the_first_layer_alone_is_wrong(small):
    expected = exact.expected(small, "bf16", sinks=True)
    inputs.poison(small)
    for row in range(6):
        small.out[0][row] = exact.attention(small, "bf16", 0, row, sinks=True)
    assert math.isnan(exact.rel_l2(exact.outputs(small), expected))
    for row in range(6):
        small.out[2][row] = exact.attention(small, "bf16", 2, row, sinks=True)
    assert 1e-3 < exact.rel_l2(exact.outputs(small), expected) < 2.5e-3  # BF16's rounding of the output
    small.out[2][5].roll(1, 0)
    small.out[2][5] = small.out[2][5].roll(1, 0)
    assert exact.rel_l2(exact.outputs(small), expected) > 0.1


def test_missed_counts_elements_outside_the_tolerance():
    expected = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    out = torch.tensor([1.0109, 1.0111, math.nan, 0.0009], dtype=torch.float64)
    assert exact.missed(out, expected, rtol=1e-2, atol=1e-3) == 0.5


def test_e4m3_misses_the_plans_tolerance_by_its_rounding_alone(small):
    """No kernel in it: the exact answer over the stored cache, held against that over BF16."""
    stored, bf16 = (exact.expected(small, name, sinks=True) for name in ("e4m3", "bf16"))
    assert exact.missed(stored, bf16, grid.RTOL, grid.ATOL) > 0.3
    assert 0.02 < exact.rel_l2(stored, bf16) < 0.1


def test_samples_are_microseconds_a_call_without_the_warmups():
    clock = iter([100.0] * timing.WARMUPS + [0.5] * timing.REPLAYS)
    assert timing.samples_us(lambda: next(clock), calls=20) == [25.0] * timing.REPLAYS
    assert next(clock, None) is None


def test_calls_are_repeated_in_whole_rounds():
    calls = [lambda: 1, lambda: 2, lambda: 3]
    assert timing.repeated(calls) == calls * 6
    assert timing.repeated(calls * 7) == calls * 7


def test_the_fastest_setting_is_that_of_the_smallest_median():
    assert timing.fastest({"a": [1.0, 9.0, 9.0], "b": [8.0, 8.0, 20.0]}) == "b"


@pytest.mark.parametrize(
    "changes",
    [
        {"time_us": None},
        {"rel_l2": None},
        {"rel_l2": math.nan},
        {"samples_us": []},
        {"error": "failed"},
        {"error": "failed", "time_us": None, "samples_us": [], "rel_l2": 1.0},
    ],
)
def test_a_row_has_all_figures_or_an_error(changes):
    row = a_kernel_row(Shape(1, 2048)).model_dump()
    KernelRow(**row)
    with pytest.raises(ValidationError):
        KernelRow(**(row | changes))


def test_a_result_is_kept_and_read_back(tmp_path):
    result = a_kernels_result(a_kernel_row(Shape(1, 2048)), a_failed_row(Shape(1, 2048)))
    write(result, tmp_path / "result.json")
    assert read(tmp_path / "result.json") == result
    kept = CliRunner().invoke(bench, ["keep", str(tmp_path), "--results", str(tmp_path / "results")])
    assert kept.exit_code == 0 and (tmp_path / "results" / f"kernels-{result.id}.json").exists()


def test_keys_that_others_read():
    found = json.loads(a_kernels_result().model_dump_json())
    assert {"kind", "read_ceiling_bytes_per_s", "rows"} <= set(found) and found["kind"] == "kernels"
    assert {"kernel", "kv_format", "batch", "context", "kv_bytes", "time_us", "rel_l2", "error"} <= set(
        found["rows"][0]
    )


def a_status(state="applied") -> Status:
    patch_set = "0.6.14+0123456789ab" if state == "applied" else None
    return Status(target="/x", version="0.6.14", state=state, files={}, patch_set=patch_set, fingerprint="0" * 12)


@pytest.fixture
def gpu_machine(monkeypatch, tmp_path):
    """A machine with a GPU and a patched FlashInfer, as far as check() and provenance look."""
    monkeypatch.setattr(measure.machine, "detect", lambda _device: a_result(gpu=True).provenance.machine)
    monkeypatch.setattr(measure.package, "installed", lambda: tmp_path)
    monkeypatch.setattr(measure.package, "version", lambda _target: "0.6.14")
    monkeypatch.setattr(measure.engine, "status", a_status)
    monkeypatch.setattr(measure.provenance, "collect", lambda *_: a_result(gpu=True).provenance)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return monkeypatch


def refused(kernels=peers.KERNELS) -> Problem:
    with pytest.raises(Problem) as caught:
        measure.check(kernels)
    assert caught.value.kind == "software" and "\n" not in caught.value.message and caught.value.remedy
    return caught.value


def test_a_machine_without_a_gpu_is_refused_first(gpu_machine):
    measure.check(peers.KERNELS)
    gpu_machine.setattr(measure.package, "installed", lambda: None)
    gpu_machine.setattr(measure.machine, "detect", lambda _device: (_ for _ in ()).throw(NO_GPU))
    assert "no GPU to time kernels on: no NVIDIA driver answers" in refused().message


def test_no_flashinfer_is_refused(gpu_machine):
    gpu_machine.setattr(measure.package, "installed", lambda: None)
    assert "no FlashInfer" in refused().message


def test_a_torch_without_cuda_is_refused(gpu_machine):
    gpu_machine.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no GPU" in refused().message


@pytest.mark.parametrize("state", ["clean", "partial", "edited", "unknown version", "superseded"])
def test_an_unpatched_flashinfer_is_refused_for_kernels_that_need_the_patch(gpu_machine, state):
    gpu_machine.setattr(measure.engine, "status", lambda: a_status(state))
    problem = refused()
    assert f"is {state}; fa2-sinks bf16, fa2-sinks e4m3: expected the patch series applied" in problem.message
    assert "fp8-sinks patch apply" in problem.remedy and "--kernel fa2-no-sinks --kernel xqa-sinks" in problem.remedy
    measure.check([kernel for kernel in peers.KERNELS if not kernel.patched])
    assert "--kernel" not in refused([kernel for kernel in peers.KERNELS if kernel.patched]).remedy


def run(*words: str):
    return CliRunner().invoke(bench, ["kernels", *words])


def test_a_dry_run_needs_no_gpu():
    done = run("--dry-run", "--shape", "8x8192", "--kernel", "fa2-sinks")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [["8x8192", "fa2-sinks", "bf16"], ["8x8192", "fa2-sinks", "e4m3"]]
    assert "67.1 MB of KV cache a call" in lines[1] and "6 layers in turn (403 MB)" in lines[1]
    assert len(run("--dry-run").stdout.splitlines()) == len(grid.GRID) * len(peers.KERNELS)


def test_the_command_line_is_checked(tmp_path):
    for words in (["--shape", "8"], ["--kernel", "fa4"]):
        assert run(*words, "--run-dir", str(tmp_path / "run")).exit_code == 2
    assert not (tmp_path / "run").exists()


@pytest.fixture
def fake_device(gpu_machine, tmp_path):
    """The whole run on a CPU: kernels are torch functions, a replay takes as many milliseconds as it has calls."""

    def prepare(made, kv_format, setting, sinks):
        def call(layer):
            for row in range(made.shape.batch):
                made.out[layer][row] = exact.attention(made, kv_format, layer, row, sinks=sinks)

        if setting == "broken":
            raise RuntimeError(f"cannot at {made.shape}\n in {tmp_path}")
        return [lambda layer=layer: call(layer) for layer in range(len(made.q) if setting != "lazy" else 0)]

    def graph_us(calls):
        for call in calls:
            call()
        return [10.0, 12.0, 11.0] if calls else [1.0]

    build = inputs.build
    gpu_machine.setattr(inputs, "build", lambda shape, layers: build(shape, min(layers, 2), "cpu"))
    gpu_machine.setattr(timing, "graph_us", graph_us)
    gpu_machine.setattr(torch.cuda, "synchronize", lambda: None)
    gpu_machine.setattr(measure, "FLASHINFER_IMPORT", False, raising=False)
    gpu_machine.setitem(sys.modules, "flashinfer", SimpleNamespace())
    gpu_machine.setitem(sys.modules, "bench.kernels.ceiling", SimpleNamespace(read_ceiling=lambda: 4e12))
    gpu_machine.setattr(measure.jit_cache, "workspace", lambda root: root / "flashinfer-0.6.14+x")
    for name in ("FLASHINFER_WORKSPACE_BASE", "TRITON_CACHE_DIR"):
        gpu_machine.setenv(name, "the user's own")

    def kernel(name, kv_format="e4m3", settings=("right",)):
        return peers.Kernel(name, kv_format, True, True, prepare, settings)

    def execute(*kernels, shapes=(Shape(2, 512),)):
        said = []
        request = measure.Request(
            list(kernels), list(shapes), tmp_path / "run", ["fp8-sinks"], said.append, said.append
        )
        return measure.execute(request), said

    return SimpleNamespace(kernel=kernel, execute=execute, patch=gpu_machine, folder=tmp_path)


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


def test_the_cache_is_wiped_and_every_kernel_built_anew(fake_device):
    first, _ = fake_device.execute(fake_device.kernel("a"))
    (cache,) = (fake_device.folder / "run" / "cache" / "flashinfer").glob("flashinfer-*")
    (cache / "kernel.so").write_bytes(b"12345678")
    second, said = fake_device.execute(fake_device.kernel("a"))
    assert first.cache_wiped_bytes == 0 and second.cache_wiped_bytes > 8 and not (cache / "kernel.so").exists()
    assert sum(line.startswith("built a e4m3 in") for line in said) == 1


def test_a_failed_kernel_keeps_its_rows(fake_device):
    broken = fake_device.kernel("b", settings=("broken",))
    result, said = fake_device.execute(fake_device.kernel("a"), broken, shapes=[Shape(2, 512), Shape(1, 1024)])
    assert [(row.kernel, row.error is None) for row in result.rows] == [("a", True), ("b", False)] * 2
    assert (
        result.rows[1].error
        == "not built: RuntimeError: cannot at 1x16 in $TMP/" + str(fake_device.folder).removeprefix("/tmp/")
        or "$TMP" in result.rows[1].error
    )
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
    shapes = [Shape(2, 512), Shape(1, 1024)]
    result, _ = fake_device.execute(fake_device.kernel("a"), fake_device.kernel("b"), shapes=shapes)
    errors = [row.error for row in result.rows]
    assert errors[0] == "RuntimeError: an illegal memory access was encountered"
    assert errors[1:] == ["not run: a e4m3 at 2x512 left the GPU unusable for this process"] * 3
    assert result.tolerance == []


def test_inputs_that_do_not_fit_fail_that_shape_alone(fake_device):
    build = inputs.build

    def too_large(shape, layers):
        if shape.batch == 4 and shape.context == 2048:
            raise RuntimeError("out of memory")
        return build(shape, layers)

    fake_device.patch.setattr(inputs, "build", too_large)
    result, _ = fake_device.execute(fake_device.kernel("a"), shapes=[Shape(4, 2048), Shape(2, 512)])
    assert [row.error for row in result.rows] == ["no inputs: RuntimeError: out of memory", None]


def test_geometry_is_gpt_oss():
    assert (GEOMETRY.query_heads, GEOMETRY.kv_heads, GEOMETRY.head_dim) == (64, 8, 64)
    assert EXIT_CODES["software"] == 15
