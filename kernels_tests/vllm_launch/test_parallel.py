"""Servers on several GPUs: profiles, and the commands of docs/profiles.md, as the installed vLLM parses them."""

import json
import re
import shlex
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.engine.environment import OF_RANKS
from flashinfer_patches.errors import Problem
from fp8_sinks.cli import main
from kernels_tests.processes import free_port
from vllm_launch import arguments, profile
from vllm_launch.redaction import REPO

SIZES = {"fp8-tp2": "tensor-parallel-size", "fp8-dp2": "data-parallel-size"}


def documented() -> list[list[str]]:
    """The words after `vllm serve MODEL` of each such command in docs/profiles.md."""
    text = (REPO / "docs" / "profiles.md").read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line, comments=True)[3:] for line in re.findall(r"^vllm serve .*", text, re.MULTILINE)]


@pytest.fixture(scope="module")
def settings():
    """A function that returns the names of the settings that vLLM's parser reads from each list of words."""
    if util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")

    def parse(words):
        script = Path(__file__).with_name("parser_script.py")
        process = subprocess.run(
            [sys.executable, str(script)], input=json.dumps(words), capture_output=True, text=True, timeout=300
        )
        assert process.returncode == 0, process.stderr[-2000:]
        return json.loads(process.stdout)["set"]

    return parse


@pytest.mark.parametrize("name", SIZES)
def test_a_profile_of_two_gpus_differs_in_their_number_alone(name):
    pair, fp8 = profile.load(name), profile.load("fp8")
    assert pair.vllm == fp8.vllm | {SIZES[name]: 2}
    assert (pair.decoder, pair.devices, pair.models, pair.backends) == (
        fp8.decoder,
        fp8.devices,
        fp8.models,
        fp8.backends,
    )


def test_vllm_parses_the_dry_runs_and_the_documented_commands(fit_machine, model_folder, settings):
    words, folder = [], str(model_folder())
    for name in SIZES:
        command = ["serve", name, "--model", folder, "--port", str(free_port()), "--dry-run", "--json"]
        invocation = CliRunner().invoke(main, command)
        assert invocation.exit_code == 0, invocation.output
        server = json.loads(invocation.stdout)["command"]
        assert server[server.index(f"--{SIZES[name]}") + 1] == "2"
        words.append(server[3:])
    words.append([*words[0], "--compilation-config.pass_config.fuse_allreduce_rms", "false"])
    arguments.parse(words[-1][-2:])  # not refused
    by_hand = documented()
    assert len(by_hand) == 3
    parsed = settings([*words, *by_hand])
    assert all(parsed)
    for names, (_, key) in zip(parsed, SIZES.items(), strict=False):
        assert key.replace("-", "_") in names
    for names in parsed[len(words) :]:
        assert {"data_parallel_size", "attention_backend"} <= {*names}


def test_the_documented_variables_are_those_of_the_engine_bench():
    text = (REPO / "docs" / "profiles.md").read_text(encoding="utf-8")
    exports = re.findall(r"^export (.*)", text.partition("## Several GPUs")[2], re.MULTILINE)
    variables = dict(word.split("=") for line in exports for word in line.split())
    assert variables == {name: value for name, value in OF_RANKS["gpu"].items() if name in variables}
    assert {*OF_RANKS["gpu"]} - {*variables} == {"VLLM_WORKER_MULTIPROC_METHOD"}


def test_the_launcher_refuses_ranks_on_several_hosts():
    """They listen on addresses that the launcher does not check."""
    for words in documented():
        with pytest.raises(Problem) as caught:
            arguments.parse(words)
        assert caught.value.kind == "profile"
