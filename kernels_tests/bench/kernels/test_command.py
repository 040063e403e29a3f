"""What the kernel bench refuses before it measures anything, and its command line."""

import json

import pytest
import torch
from click.testing import CliRunner

from bench.cli import bench
from bench.kernels import command, grid, peers
from bench.kernels import run as runs
from bench.record.files import write
from kernels_tests.bench.conftest import a_status, refused

NO_GPU = LookupError("no NVIDIA driver answers")


def test_a_machine_without_a_gpu_is_refused_first(gpu_machine):
    runs.check(peers.KERNELS, named=False)
    gpu_machine.setattr(runs.package, "installed", lambda: None)
    gpu_machine.setattr(runs.machine, "detect", lambda _device: (_ for _ in ()).throw(NO_GPU))
    assert "no GPU to time kernels on: no NVIDIA driver answers" in refused().message


def test_no_flashinfer_is_refused(gpu_machine):
    gpu_machine.setattr(runs.package, "installed", lambda: None)
    assert "no FlashInfer" in refused().message


def test_a_torch_without_cuda_is_refused(gpu_machine):
    gpu_machine.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no GPU" in refused().message


@pytest.mark.parametrize("state", ["clean", "partial", "edited", "unknown version", "superseded"])
def test_an_unpatched_flashinfer_is_refused_for_kernels_that_need_the_patch(gpu_machine, state):
    gpu_machine.setattr(runs.engine, "status", lambda: a_status(state))
    problem = refused()
    assert f"is {state}; fa2-sinks bf16, fa2-sinks e4m3: expected the patch series applied" in problem.message
    assert "fp8-sinks patch apply" in problem.remedy and problem.remedy.endswith(
        "without them: --kernel sink-decode --kernel fa2-no-sinks --kernel xqa-sinks"
    )
    runs.check([kernel for kernel in peers.KERNELS if not kernel.patched], named=False)
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
    for words in (["--shape", "8"], ["--kernel", "fa4"], ["--resume", str(tmp_path)]):
        assert run(*words, "--run-dir", str(tmp_path / "run")).exit_code == 2
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_refused(gpu_machine, tmp_path):
    (tmp_path / "cache").mkdir()
    refused = run("--run-dir", str(tmp_path))
    assert refused.exit_code == 2 and "is not empty, and holds no run of this bench" in refused.output
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_run_is_resumed_with_what_it_was_asked(tmp_path):
    asked = command.Asked(kernels=["sink-decode"], shapes=["8x8192w127"])
    write(asked, tmp_path / "request.json")
    lines = run("--resume", str(tmp_path), "--dry-run").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["8x8192w127", "sink-decode"]] * 2
    same = run("--run-dir", str(tmp_path), "--kernel", "sink-decode", "--shape", "8x8192w127", "--dry-run")
    assert same.stdout.splitlines() == lines
    other = run("--run-dir", str(tmp_path), "--dry-run")
    assert other.exit_code == 2 and "holds a run of other kernels or shapes" in other.output
    nothing = run("--resume", str(tmp_path / "none"), "--dry-run")
    assert nothing.exit_code == 2 and "is no run of this bench" in nothing.output
    for gone in ({"kernels": ["sink-decode", "fa9"], "shapes": []}, {"kernels": [], "shapes": ["8x8192w126"]}):
        (tmp_path / "request.json").write_text(json.dumps(gone))
        unknown = run("--resume", str(tmp_path), "--dry-run")
        assert unknown.exit_code == 2 and "is no run of this bench" in unknown.output
    assert "left out: a block table wider" in run("--dry-run", "--shape", "1x2048t131072").stdout
