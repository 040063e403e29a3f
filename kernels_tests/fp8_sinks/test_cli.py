"""The command `fp8-sinks`: what its help says, and that it loads nothing to say it."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from fp8_sinks.cli import COMMANDS, main
from kernels_tests.vllm_launch.machines import REPO

SLOW = {"torch", "matplotlib", "numpy", "vllm", "pydantic", "requests", "huggingface_hub", "rich", "yaml", "bench"}
LOADED = "import sys; from fp8_sinks.cli import main; main(standalone_mode=False); print(*sys.modules, sep='\\n')"


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_loads_no_command(words):
    done = subprocess.run([sys.executable, "-c", LOADED, *words], cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = {line.split(".")[0] for line in done.stdout.splitlines()}
    assert "click" in loaded and not SLOW & loaded


def test_help_says_of_each_command_what_the_command_says_itself():
    listed = " ".join(CliRunner().invoke(main, ["--help"]).stdout.split())
    for name, (_, says) in COMMANDS.items():
        command = main.get_command(None, name)
        assert command.name == name and command.get_short_help_str(limit=1000) == says
        assert f"{name} {says}" in listed
        done = CliRunner().invoke(main, [name, "--help"])
        assert done.exit_code == 0 and says.rstrip(".") in " ".join(done.stdout.split())


def test_a_command_that_is_not_there():
    done = CliRunner().invoke(main, ["server"])
    assert done.exit_code == 2 and "server" in done.stderr
