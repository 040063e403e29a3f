"""A run of the kernel bench without a GPU: what it refuses, and a whole run on a pretended device."""

import sys
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from bench.cli import bench
from bench.kernels import exact, grid, inputs, measure, peers, timing
from bench.kernels.grid import Shape
from flashinfer_patches.state import Status
from kernels_tests.bench.samples import a_result
from vllm_launch.errors import Problem

SHAPES = (Shape(2, 512),)
NO_GPU = LookupError("no NVIDIA driver answers")


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


def _flashinfer_that_writes_when_imported(patch, site):
    """As the real one does: its generated files begin with the import."""
    (site / "flashinfer").mkdir(parents=True)
    code = "import os, pathlib\npathlib.Path(os.environ['FLASHINFER_WORKSPACE_BASE'], '.cache').mkdir(parents=True)\n"
    (site / "flashinfer" / "__init__.py").write_text(code)
    patch.syspath_prepend(site)
    patch.setitem(sys.modules, "flashinfer", None)
    del sys.modules["flashinfer"]


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
    _flashinfer_that_writes_when_imported(gpu_machine, tmp_path / "site")
    gpu_machine.setitem(sys.modules, "bench.kernels.ceiling", SimpleNamespace(read_ceiling=lambda: 4e12))
    gpu_machine.setattr(measure.jit_cache, "workspace", lambda root: root / "flashinfer-0.6.14+x")
    for name in ("FLASHINFER_WORKSPACE_BASE", "TRITON_CACHE_DIR"):
        gpu_machine.setenv(name, "the user's own")

    def kernel(name, kv_format="e4m3", settings=("right",)):
        return peers.Kernel(name, kv_format, True, True, prepare, settings)

    def execute(*kernels, shapes=SHAPES):
        said = []
        run = tmp_path / "run"
        request = measure.Request(list(kernels), list(shapes), run, ["fp8-sinks"], said.append, said.append)
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


def test_a_flashinfer_that_cannot_be_imported_is_one_error(fake_device):
    fake_device.patch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(Problem, match="FlashInfer cannot be imported: ModuleNotFoundError"):
        fake_device.execute(fake_device.kernel("a"))


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
