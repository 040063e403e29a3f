"""The command `fp8-sinks`: its help, and that the help imports no subcommand."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from fp8_sinks.cli import COMMANDS, main
from kernels_tests.vllm_launch.machines import REPO

SLOW = {"torch", "matplotlib", "numpy", "vllm", "pydantic", "requests", "huggingface_hub", "rich", "yaml", "bench"}
LOADED = "import sys; from fp8_sinks.cli import main; main(standalone_mode=False); print(*sys.modules, sep='\\n')"


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_imports_no_subcommand(words):
    command = [sys.executable, "-c", LOADED, *words]
    process = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    loaded = {line.split(".")[0] for line in process.stdout.splitlines()}
    assert "click" in loaded and not SLOW & loaded


def test_help_lists_the_short_help_of_each_command():
    listed = " ".join(CliRunner().invoke(main, ["--help"]).stdout.split())
    for name, (_, summary) in COMMANDS.items():
        command = main.get_command(None, name)
        assert command.name == name and command.get_short_help_str(limit=1000) == summary
        assert f"{name} {summary}" in listed
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0 and summary.rstrip(".") in " ".join(result.stdout.split())


def test_an_unknown_command():
    result = CliRunner().invoke(main, ["server"])
    assert result.exit_code == 2 and "server" in result.stderr
