"""CUSTOM is registered where FP8_SINKS_PLUGIN is set and vLLM may load us, and nowhere else; failures are loud."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm_launch.plugin import CUDA_BACKEND

REPO = Path(__file__).parents[3]


def run_script(name: str) -> str:
    """Run a module of this folder in a process of its own; returns its output."""
    command = [sys.executable, "-m", f"kernels_tests.vllm_launch.plugin.{name}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def results():
    return json.loads(run_script("registration_script").splitlines()[-1])


@pytest.mark.parametrize("case", ["variable", "allowed", "among others", "twice", "spawned"])
def test_registered(results, case):
    assert results[case] == CUDA_BACKEND


@pytest.mark.parametrize("case", ["no variable", "not allowed", "none allowed"])
def test_not_registered(results, case):
    assert results[case] is None


def test_a_version_without_an_adapter_is_refused_when_chosen(results):
    if results["version"].startswith(("0.26.", "0.33.")):
        assert not results["unsupported version"]
    else:
        assert "supports 0.26, 0.33" in results["unsupported version"]


def test_an_import_error_keeps_its_message(results):
    """vLLM would take an ImportError for a backend that is not available, and drop its message."""
    assert results["import error"].startswith("RuntimeError: ") and "lowp.cache_write" in results["import error"]


def test_another_plugin_keeps_its_backend(results):
    assert results["another plugin's"].startswith("RuntimeError: ") and "other.Backend" in results["another plugin's"]


def test_layers_and_builders_of_vllm_run_with_the_backend():
    """In the installed vLLM; `check_adapter` says how to run it in a CUDA wheel of a supported version."""
    lines = dict(line.split(": ", 1) for line in run_script("check_adapter").splitlines() if ": " in line)
    steps = {f"steps, {kv_format}" for kv_format in ("bf16", "e4m3", "int8", "int8-static")}
    assert {"registration", "selection", "capacity", "drafts", "layout"} | steps <= set(lines)
