"""GPU tests on a machine without a GPU: counted in the last line of the summary, never silently left out."""

import os
import sys

import pytest

from kernels_tests.processes import completed
from vllm_launch.provenance import REPO

TESTS = """
import pytest

@pytest.mark.gpu
@pytest.mark.parametrize("case", range(3))
def test_on_gpu(case): ...

def test_anywhere(): ...

@pytest.mark.skip(reason="a reason to read")
def test_skipped(): ...
"""
NO_GPU = """
from vllm_launch import machine

def detect(device):
    raise LookupError("no NVIDIA driver answers")

machine.detect = detect
"""


@pytest.mark.parametrize(
    ("options", "counts"),
    [([], "1 passed, 1 skipped, 3 need a GPU"), (["-m", "gpu"], "2 deselected, 3 need a GPU")],
    ids=["all", "-m gpu"],
)
def test_gpu_tests_are_counted_in_the_last_line(tmp_path, options, counts):
    (tmp_path / "test_sample.py").write_text(TESTS)
    (tmp_path / "no_gpu.py").write_text(NO_GPU)
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(REPO / "pyproject.toml"), "-p", "no:cacheprovider"]
    command += ["-p", "no_gpu", "-p", "kernels_tests.conftest", *options, str(tmp_path / "test_sample.py")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(REPO)))}
    run = completed(command, 60, cwd=tmp_path, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    *summary, last = run.stdout.splitlines()
    assert last.startswith(counts)
    skips = [line for line in summary if line.startswith("SKIPPED")]
    assert len(skips) == (not options) and all("a reason to read" in line for line in skips)
