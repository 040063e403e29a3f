"""A fake machine with a GPU: its kernels are torch functions, their times fixed."""

import sys
from statistics import median
from types import SimpleNamespace

import pytest
import torch

from bench.kernels import environment, exact, peers, timing
from bench.kernels import run as runs
from bench.kernels.grid import Point
from bench.kernels.request import KernelsRequest, KernelsRun
from bench.record import run_folder
from flashinfer_patches.state import Status
from kernels_tests.bench.samples import a_result
from lowp.paged import inputs
from lowp.paged.shapes import even

SHAPES = (even(2, 512),)


@pytest.fixture(scope="module")
def single_thread():
    """Threads on busy cores wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def a_status(state="applied") -> Status:
    patch_set = "0.6.14+0123456789ab" if state == "applied" else None
    return Status(target="/x", version="0.6.14", state=state, files={}, patch_set=patch_set, fingerprint="0" * 12)


def a_run(folder, kernels=peers.KERNELS, shapes=SHAPES, named=False, points=(), part=None, **changes) -> KernelsRun:
    names = [peers.OURS] if named else []
    request = KernelsRequest(kind="kernels", kernels=names, shapes=[], part=part)
    points = [*points] or [Point("standard", shape) for shape in shapes]
    return KernelsRun(folder, request, list(kernels), points, **changes)


@pytest.fixture
def gpu_machine(monkeypatch, tmp_path):
    """A machine with a GPU and a patched FlashInfer and no vLLM, as far as problems() and provenance see."""
    monkeypatch.setattr(environment.machine, "detect", lambda _device: a_result(gpu=True).provenance.machine)
    monkeypatch.setattr(environment.package, "installed", lambda: tmp_path)
    monkeypatch.setattr(environment.package, "version", lambda _target: "0.6.14")
    monkeypatch.setattr(environment.engine, "status", a_status)
    monkeypatch.setattr(environment.provenance, "collect", lambda *_: a_result(gpu=True).provenance)
    monkeypatch.setattr(environment.vllm_peers, "find_spec", lambda _name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return monkeypatch


@pytest.fixture
def problems_of(tmp_path):
    """A function that returns the problems of a run, each of which must say what to do."""

    def check(kernels=peers.KERNELS, named=False):
        problems = environment.problems(a_run(tmp_path / "new", kernels, named=named))
        assert all(problem.kind == "software" and problem.exit_code == 4 for problem in problems)
        assert all("\n" not in problem.message and problem.remedy for problem in problems)
        return problems

    return check


def _flashinfer_that_writes_when_imported(patch, site):
    """As the real one does: importing it creates its generated files."""
    (site / "flashinfer").mkdir(parents=True)
    code = "import os, pathlib\npathlib.Path(os.environ['FLASHINFER_WORKSPACE_BASE'], '.cache').mkdir(parents=True)\n"
    (site / "flashinfer" / "__init__.py").write_text(code)
    patch.syspath_prepend(site)
    patch.setitem(sys.modules, "flashinfer", None)
    del sys.modules["flashinfer"]


@pytest.fixture
def fake_device(gpu_machine, tmp_path):
    """Whole runs on a CPU: all replays take the same times; `prepared` records what was prepared."""
    prepared = []

    def prepare(data, kv_format, setting, sinks):
        def call(layer):
            for row in range(data.shape.batch):
                data.out[layer][row] = exact.attention(data, kv_format, layer, row, sinks=sinks)

        prepared.append((str(data.shape), kv_format, setting))
        if setting == "broken" or (setting == "broken with 128" and data.shape.head_dim == 128):
            raise RuntimeError(f"cannot at {data.shape}\n in {tmp_path}")
        return [lambda layer=layer: call(layer) for layer in range(len(data.q) if setting != "lazy" else 0)]

    def graph_us(calls, clear):
        clear()
        for call in calls:
            call()
        return [10.0, 12.0, 11.0] if calls else [1.0]

    def back_to_back_and_between_us(calls, clear):
        return median(graph_us(calls, clear)), 13.0

    build, large_cache, from_cache = inputs.build, inputs.large_cache, inputs.from_cache
    gpu_machine.setattr(inputs, "build", lambda shape, layers, formats: build(shape, min(layers, 2), formats, "cpu"))
    gpu_machine.setattr(inputs, "large_cache", lambda pages, kv_format: large_cache(min(pages, 512), kv_format, "cpu"))
    gpu_machine.setattr(inputs, "from_cache", lambda shape, layers, caches: from_cache(shape, min(layers, 2), caches))
    gpu_machine.setattr(timing, "graph_us", graph_us)
    gpu_machine.setattr(timing, "back_to_back_and_between_us", back_to_back_and_between_us)
    gpu_machine.setattr(torch.cuda, "synchronize", lambda: None)
    _flashinfer_that_writes_when_imported(gpu_machine, tmp_path / "site")
    gpu_machine.setitem(sys.modules, "bench.kernels.ceiling", SimpleNamespace(read_ceiling=lambda: 4e12))
    gpu_machine.setattr(runs.jit_cache, "workspace", lambda root: root / "flashinfer-0.6.14+x")
    for name in (*runs.CACHE_VARIABLES, "VLLM_LOGGING_STREAM"):
        gpu_machine.setenv(name, "the user's own")

    def kernel(name, kv_format="e4m3", settings=("right",), source="flashinfer", sinks=True):
        return peers.DecodeKernel(name, kv_format, source, sinks, source == "flashinfer", prepare, settings)

    def execute(*kernels, shapes=SHAPES, named=False, folder="run", points=(), part=None):
        lines, options = [], {"points": points, "part": part}
        run = a_run(tmp_path / folder, kernels, shapes, named, **options, status=lines.append, print_line=lines.append)
        with run_folder.opened(run.folder, run.request):
            return runs.execute(run, ["fp8-sinks"]), lines

    return SimpleNamespace(kernel=kernel, execute=execute, patch=gpu_machine, folder=tmp_path, prepared=prepared)
