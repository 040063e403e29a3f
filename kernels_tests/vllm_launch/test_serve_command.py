"""`fp8-sinks serve` on the command line: output, exit codes, and no files left after a refusal."""

import json
import subprocess

import pytest
from click.testing import CliRunner

from flashinfer_patches.errors import EXIT_CODES
from fp8_sinks.cli import main
from kernels_tests.processes import free_port
from kernels_tests.vllm_launch.test_profile import FOR_SERVING


def test_a_bad_profile_is_a_line_with_its_remedy(tmp_path):
    bad = tmp_path / "mine.yaml"
    bad.write_text("extends: baseline\nkv: fp8\n")
    result = CliRunner().invoke(main, ["serve", str(bad)])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0].startswith("Error: mine.yaml: kv:")
    assert result.stderr.splitlines()[1].startswith("  remedy: ")
    assert result.stdout == ""


def test_dry_run_is_a_line_that_a_shell_understands(fit_machine, model_folder):
    arguments = ["serve", "fp8", "--model", str(model_folder()), "--port", str(free_port()), "--dry-run"]
    arguments += ["--", "--max-model-len", "99"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    check = (
        result.stdout.replace("env ", "env -i ", 1).split(" -m vllm")[0].strip() + " -c 'import os; print(os.environ)'"
    )
    printed = subprocess.run(["sh", "-c", check], capture_output=True, text=True, check=True).stdout
    assert "'FP8_SINKS_PLUGIN': '1'" in printed
    assert "--kv-cache-dtype fp8" in result.stdout and result.stdout.rstrip().endswith("--max-model-len 99")
    assert list(fit_machine.iterdir()) == []


REFUSED = {"--host": "0.0.0.0", "--run-dir": "/proc/nowhere"}


def test_a_dry_run_ends_as_serve_would(fit_machine, model_folder):
    folder = model_folder(names=["model.embed_tokens.weight"])
    words = ["serve", "fp8", "--model", str(folder), *(word for pair in REFUSED.items() for word in pair)]
    dry = CliRunner().invoke(main, [*words, "--dry-run"])
    real = CliRunner().invoke(main, words)
    assert dry.exit_code == real.exit_code == EXIT_CODES["model"]
    assert dry.stderr == real.stderr and real.stdout == ""
    assert all(text in dry.stderr for text in ("no attention sinks", "0.0.0.0", "/proc/nowhere"))
    assert dry.stdout.startswith("env ") and "--served-model-name" in dry.stdout
    as_json = CliRunner().invoke(main, [*words, "--dry-run", "--json"])
    assert json.loads(as_json.stdout)["profile"] == "fp8" and as_json.exit_code == dry.exit_code


def test_a_refused_command_leaves_nothing(fit_machine, model_folder):
    folder = model_folder(names=["model.embed_tokens.weight"])
    result = CliRunner().invoke(main, ["serve", "fp8", "--model", str(folder)])
    assert result.exit_code == EXIT_CODES["model"]
    assert list(fit_machine.iterdir()) == []


@pytest.mark.parametrize("port", ["0", "-1", "65536", "99999", "http"])
def test_a_port_that_is_none_is_a_mistake_on_the_command_line(port):
    result = CliRunner().invoke(main, ["serve", "baseline", f"--port={port}", "--dry-run"])
    assert result.exit_code == 2 and "--port" in result.stderr and not isinstance(result.exception, OverflowError)


def test_a_profile_that_extends_nothing_is_served_and_measured(fit_machine):
    path = fit_machine / "serving-alone.yaml"
    path.write_text(FOR_SERVING)
    commands = (["serve", str(path), "--port", str(free_port())], ["bench", "serving", str(path)])
    for words in (*commands, ["bench", "accuracy", str(path)]):
        invocation = CliRunner().invoke(main, [*words, "--dry-run"])
        assert invocation.exit_code == 0, invocation.output
