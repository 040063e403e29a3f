"""scripts/setup.sh: its messages when it fails."""

import json
import os
import sys
from importlib import metadata
from pathlib import Path

import pytest

from kernels_tests.processes import completed
from vllm_launch.provenance import REPO


def setup(**environment):
    return completed([str(REPO / "scripts" / "setup.sh")], 120, env=os.environ | environment)


@pytest.mark.long
def test_a_missing_network_is_a_message_with_its_remedy(tmp_path):
    (tmp_path / "empty").mkdir()
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "empty"), "PIP_CONFIG_FILE": os.devnull}
    process = setup(VENV=str(tmp_path / "venv"), DEVICE="cpu", PIP_EXTRA_INDEX_URL="", **offline)
    assert process.returncode == 4
    assert "setup: pip failed" in process.stderr and "setup: remedy: check the network" in process.stderr
    assert not (tmp_path / "venv" / ".fp8-sinks-locks").read_text(), "an empty stamp: not set up"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"DEVICE": "tpu"}, "neither cpu nor gpu"),
        ({"DEVICE": "gpu", "VLLM": "0.1"}, "no lock file locks/gpu-vllm-0.1.txt"),
        ({"PYTHON": "false"}, "is not Python 3.11 to 3.13"),
    ],
)
def test_mistakes(tmp_path, environment, message):
    process = setup(VENV=str(tmp_path / "venv"), **environment)
    assert process.returncode == 4 and message in process.stderr and "remedy:" in process.stderr
    assert not (tmp_path / "venv").exists()


def test_a_second_set_up_does_nothing():
    stamp = Path(sys.prefix) / ".fp8-sinks-locks"
    if not stamp.exists() or not stamp.read_text().startswith("cpu "):
        pytest.skip("this is no environment that setup.sh made for a CPU")
    installed = json.loads(metadata.distribution("fp8-sinks").read_text("direct_url.json"))["url"]
    if installed != REPO.as_uri():
        pytest.skip("this environment belongs to another checkout")
    process = setup(VENV=sys.prefix, DEVICE="cpu")
    assert (process.returncode, process.stderr) == (0, "")
