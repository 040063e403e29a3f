"""The command line of the kernel bench, and what keeps a run from starting."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench.cli import bench
from bench.kernels import environment, estimate, grid, peers
from bench.kernels.request import KernelsRequest, resolve
from bench.record.files import write
from bench.record.run_folder import CACHE, LOCK, REQUEST
from flashinfer_patches import locking
from kernels_tests.bench.kernels.conftest import a_status

NO_GPU = LookupError("no NVIDIA driver answers")
UNPATCHED = [kernel for kernel in peers.KERNELS if not kernel.patched]


def without_gpu(patch):
    def detect(_device):
        raise NO_GPU

    patch.setattr(environment.machine, "detect", detect)


def test_every_problem_is_reported(gpu_machine, problems_of):
    assert problems_of() == []
    gpu_machine.setattr(environment.package, "installed", lambda: None)
    without_gpu(gpu_machine)
    gpu, flashinfer = problems_of()
    assert str(NO_GPU) in gpu.message and "no FlashInfer" in flashinfer.message
    assert len(problems_of([kernel for kernel in peers.KERNELS if kernel.source == "lowp"])) == 1


def test_a_torch_without_cuda_is_refused(gpu_machine, problems_of):
    gpu_machine.setattr(torch.cuda, "is_available", lambda: False)
    (problem,) = problems_of()
    assert torch.__version__ in problem.message


@pytest.mark.parametrize("state", ["clean", "partial", "edited", "unknown version", "superseded"])
def test_kernels_that_need_the_patch_are_refused_without_it(gpu_machine, problems_of, state):
    gpu_machine.setattr(environment.engine, "status", lambda: a_status(state))
    (problem,) = problems_of()
    assert f"is {state}; fa2-sinks bf16, fa2-sinks e4m3:" in problem.message
    assert "fp8-sinks patch apply" in problem.remedy
    assert problem.remedy.endswith("--kernel sink-decode --kernel fa2-no-sinks --kernel xqa-sinks")
    assert problems_of(UNPATCHED) == []
    (problem,) = problems_of([kernel for kernel in peers.KERNELS if kernel.patched])
    assert "--kernel" not in problem.remedy


def test_vllm_is_required_only_by_name(gpu_machine, problems_of):
    assert problems_of(named=False) == []
    (problem,) = problems_of(named=True)
    assert problem.message.startswith("vllm-fa3 cannot be measured: ")
    assert problems_of([kernel for kernel in peers.KERNELS if kernel.source != "vllm"], named=True) == []


def run(*options: str):
    return CliRunner().invoke(bench, ["kernels", *options])


def test_a_dry_run_prints_bytes_and_layers(gpu_machine):
    dry_run = run("--dry-run", "--shape", "8x8192", "--kernel", "fa2-sinks")
    assert dry_run.exit_code == 0, dry_run.output
    lines = dry_run.stdout.splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [["8x8192", "fa2-sinks", kv] for kv in ("bf16", "e4m3")]
    assert "67.1 MB" in lines[1] and "6 layers" in lines[1] and "(403 MB)" in lines[1]
    assert lines[2].startswith("1 shapes, 2 rows, about ")
    assert len(run("--dry-run").stdout.splitlines()) == len(grid.STANDARD) * len(peers.KERNELS) + 1
    assert "skipped: a block table wider" in run("--dry-run", "--shape", "1x2048t131072").stdout


def test_a_dry_run_needs_no_gpu(gpu_machine, tmp_path):
    """It prints what would keep the run from starting, but succeeds."""
    without_gpu(gpu_machine)
    options = ("--shape", "8x8192", "--run-dir", str(tmp_path / "run"))
    dry_run = run("--dry-run", *options)
    assert dry_run.exit_code == 0 and str(NO_GPU) in dry_run.stderr
    assert len(dry_run.stdout.splitlines()) == len(peers.KERNELS) + 1
    assert run(*options).exit_code == 4
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["server", "random"])
def test_a_dry_run_prints_the_shapes_of_a_part(gpu_machine, name):
    parts = [run("--dry-run", "--grid", name, "--part", f"{number}/3").stdout.splitlines() for number in (1, 2, 3)]
    all_lines = run("--dry-run", "--grid", name).stdout.splitlines()
    assert sorted(line for part in parts for line in part[:-1]) == sorted(all_lines[:-1])
    assert len(all_lines) == len(grid.points([name])) + 1
    assert all(line.startswith(f"{name} ") and "sink-decode bf16, sink-decode e4m3" in line for line in all_lines[:-1])


def test_no_part_of_a_grid_takes_nine_minutes(gpu_machine):
    for grids in (["standard"], ["server", "random"]):
        request = KernelsRequest(kind="kernels", kernels=[], shapes=[], grids=grids)
        assert 60 < estimate.seconds(resolve(Path("run"), request)) < 540
        halves = [estimate.seconds(resolve(Path("run"), request.model_copy(update={"part": f"{n}/2"}))) for n in (1, 2)]
        assert max(halves) < 1.2 * min(halves)


@pytest.mark.parametrize(
    ("options", "formats"),
    [
        (["--kv-format", "int8"], ["int8"]),
        (["--kv-format", "int8", "--kv-format", "e4m3", "--kernel", "sink-decode"], ["e4m3", "int8"]),
        (["--kv-format", "bf16", "--kernel", "fa2-no-sinks"], ["bf16"]),
    ],
)
def test_storage_formats_are_selected(gpu_machine, options, formats):
    lines = run("--dry-run", "--shape", "8x8192", *options).stdout.splitlines()
    assert [line.split()[2] for line in lines[:-1]] == formats
    assert lines[-1].startswith(f"1 shapes, {len(formats)} rows, about ")


def test_int8_of_a_server_takes_minutes_less_than_all_kernels(gpu_machine):
    """It is measured alone, beside E4M3: all of both grids in two minutes."""
    fields = {"kernels": ["sink-decode"], "kv_formats": ["e4m3", "int8", "int8-static"], "grids": ["server", "random"]}
    request = KernelsRequest(kind="kernels", shapes=[], **fields)
    assert 60 < estimate.seconds(resolve(Path("run"), request)) < 240


def test_the_command_line_is_checked(tmp_path):
    for options in (
        ["--shape", "8"],
        ["--shape", "8x8192", "--grid", "server"],
        ["--kernel", "fa4"],
        ["--kv-format", "int4"],
        ["--kv-format", "int8", "--kernel", "fa2-sinks"],
        ["--grid", "large"],
        ["--part", "3/2"],
        ["--part", "0/2"],
        ["--part", "1/2", "--shape", "8x8192"],
        ["--resume", str(tmp_path)],
        ["--join", str(tmp_path), "--part", "1/2"],
    ):
        assert run(*options, "--run-dir", str(tmp_path / "run")).exit_code == 2
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_run_is_refused(gpu_machine, tmp_path):
    (tmp_path / CACHE).mkdir()
    refusal = run("--run-dir", str(tmp_path))
    assert refusal.exit_code == 2 and REQUEST in refusal.output
    assert [path.name for path in tmp_path.iterdir()] == [CACHE]


def test_a_cache_folder_of_another_program_is_kept(gpu_machine, tmp_path):
    write(KernelsRequest(kind="kernels", kernels=[], shapes=[]), tmp_path / REQUEST)
    foreign = tmp_path / CACHE / "vllm" / "file"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("foreign")
    refusal = run("--run-dir", str(tmp_path))
    assert refusal.exit_code == 2 and str(tmp_path / CACHE) in refusal.output
    assert foreign.read_text() == "foreign"


def test_a_folder_in_use_is_refused(gpu_machine, tmp_path):
    with locking.held(tmp_path / LOCK, "bench kernels", timeout_s=0):
        refusal = run("--run-dir", str(tmp_path), "--kernel", "sink-decode")
    assert refusal.exit_code == 4 and "bench kernels" in refusal.output
    assert not (tmp_path / "result.json").exists()


def test_a_run_is_resumed_with_its_request(gpu_machine, tmp_path):
    write(KernelsRequest(kind="kernels", kernels=["sink-decode"], shapes=["8x8192w127"]), tmp_path / REQUEST)
    resumed = run("--resume", str(tmp_path), "--dry-run")
    assert resumed.exit_code == 0, resumed.output
    lines = resumed.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [["8x8192w127", "sink-decode"]] * 4
    same = run("--run-dir", str(tmp_path), "--kernel", "sink-decode", "--shape", "8x8192w127", "--dry-run")
    assert same.exit_code == 0 and same.stdout.splitlines() == lines
    different = run("--run-dir", str(tmp_path), "--dry-run")
    assert different.exit_code == 2 and "other kernels, shapes" in different.output
    assert run("--resume", str(tmp_path / "none"), "--dry-run").exit_code == 2


@pytest.mark.parametrize(
    "request_fields",
    [
        {"kind": "kernels", "kernels": ["sink-decode", "fa9"], "shapes": []},
        {"kind": "kernels", "kernels": [], "shapes": ["8x8192w126"]},
        {"kernels": [], "shapes": []},
    ],
)
def test_a_request_of_another_version_is_refused(gpu_machine, tmp_path, request_fields):
    (tmp_path / REQUEST).write_text(json.dumps(request_fields))
    refusal = run("--resume", str(tmp_path), "--dry-run")
    assert refusal.exit_code == 2 and REQUEST in refusal.output
