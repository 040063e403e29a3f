"""scripts/setup.sh: what a user reads when it cannot do its work."""

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


def test_no_network_is_one_clear_line_with_its_remedy(tmp_path):
    (tmp_path / "empty").mkdir()
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "empty"), "PIP_CONFIG_FILE": os.devnull}
    done = setup(VENV=str(tmp_path / "venv"), DEVICE="cpu", PIP_EXTRA_INDEX_URL="", **offline)
    assert done.returncode == 4
    assert "setup: pip failed" in done.stderr and "setup: remedy: check the network" in done.stderr
    assert not (tmp_path / "venv" / ".fp8-sinks-locks").read_text(), "it would count as set up"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"DEVICE": "tpu"}, "neither cpu nor gpu"),
        ({"DEVICE": "gpu", "VLLM": "0.1"}, "no lock file locks/gpu-vllm-0.1.txt"),
        ({"PYTHON": "false"}, "is not Python 3.11 to 3.13"),
    ],
)
def test_mistakes(tmp_path, environment, said):
    done = setup(VENV=str(tmp_path / "venv"), **environment)
    assert done.returncode == 4 and said in done.stderr and "remedy:" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_finished_set_up_is_left_alone():
    stamp = Path(sys.prefix) / ".fp8-sinks-locks"
    if not stamp.exists() or not stamp.read_text().startswith("cpu "):
        pytest.skip("these tests do not run in an environment that setup.sh made for a CPU")
    installed = json.loads(metadata.distribution("fp8-sinks").read_text("direct_url.json"))["url"]
    if installed != REPO.as_uri():
        pytest.skip("this environment belongs to another checkout: set-up from here would take it over")
    done = setup(VENV=sys.prefix, DEVICE="cpu")
    assert (done.returncode, done.stderr) == (0, "")
