"""The soak's verdicts on made results, and the soak itself on a CPU, with a right engine and with wrong ones."""

import json
import math
import os
import subprocess
import sys
from argparse import Namespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from kernels_tests.vllm_launch.plugin import soak, traffic
from kernels_tests.vllm_launch.plugin.soak_mutants import MUTANT
from kernels_tests.vllm_launch.plugin.test_registration import REPO

MIB = 2**20
TIE = [3, [8, 7], [-0.70, -0.75], [-0.72, -0.70]]
SMALL = ["--requests", "96", "--rounds", "4", "--prompts", "8", "--longest", "320", "--tokens", "48"]


def made_round(**changes) -> dict:
    return {
        "requests": 500,
        "steps": 900,
        "aborted": {"waiting": 9, "prefill": 8, "decode": 70},
        "preempted": 40,
        "preempted_answers": 30,
        "leftovers": {"KV blocks": 0, "scheduler": 0, "output processor": 0, "model runner": 0, "aborted": 0},
        "answers": 400,
        "finite": True,
        "wrong_length": 0,
        "mean_delta": 0.004,
        "differences": {"17": TIE},
        "shortfalls": {"17": 0.1},
        "memory": {"RSS": 1000 * MIB, "GPU allocated": 500 * MIB, "GPU reserved": 600 * MIB},
        "s": 10.0,
    } | changes


def failures(changed_rounds: list[dict], name: str = "bf16", alone_finite: bool = True, rounds: int = 8) -> int:
    """Verdicts that fail where the last rounds are changed."""
    entries = [made_round()] * (rounds - len(changed_rounds)) + [made_round(**changes) for changes in changed_rounds]
    result = {"start_s": 20.0, "alone_s": 50.0, "alone_finite": alone_finite, "rounds": entries}
    arguments = Namespace(requests=4000, first=0, prompts=300)
    return sum(not passes for passes, _ in soak.judge(arguments, {name: result}))


def test_a_right_run_passes():
    assert failures([]) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"leftovers": {"KV blocks": 3}},
        {"leftovers": {"KV blocks": -1}},
        {"finite": False},
        {"wrong_length": 1},
        {"mean_delta": 0.03},
        {"mean_delta": math.nan},
        {"differences": {"17": TIE, "18": [0, [8, 7], [-0.1, -math.inf], [-0.9, -0.1]]}},
        {"shortfalls": {"17": 2.0, "18": 2.0}},
        {"shortfalls": {"17": 5.5}},
        {"memory": {"RSS": 1100 * MIB}},
        {"memory": {"GPU allocated": 505 * MIB}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_wrong_rounds_fail(changes):
    assert failures([changes]) == 1


def test_too_little_fails():
    assert failures([{"preempted": 0}] * 8) == 1
    assert failures([{"aborted": {"decode": 70}}] * 8) == 1
    assert failures([], alone_finite=False) == 1
    assert failures([], rounds=3) == 1  # nothing to compare the memory with
    assert failures([], rounds=0) > 0


def test_fp8_has_bounds_of_its_own():
    assert failures([{"mean_delta": 0.03, "shortfalls": {"17": 0.8}}], name="fp8") == 0


def test_requests_are_the_same_in_every_run():
    drawn = [traffic.draw(number, 300, 64) for number in range(2000)]
    assert drawn == [traffic.draw(number, 300, 64) for number in range(2000)]
    assert sum(request.abort is not None for request in drawn) == 500
    assert {request.tokens for request in drawn} == set(range(1, 65))


def test_prompts_of_all_lengths_share_beginnings():
    prompts = traffic.pool(list(range(5000)), 300, 6000)
    assert prompts == traffic.pool(list(range(5000)), 300, 6000)
    assert {len(prompts[0]), len(prompts[1])} == {1, 6000}
    beginnings = [tuple(ids[:16]) for ids in prompts if len(ids) >= 64]
    assert len(set(beginnings)) < 0.8 * len(beginnings)


def run_soak(folder, engine: str, module: str = "soak", mutant: str = "") -> tuple[int, list[str]]:
    """The soak's exit code, and the verdicts that fail."""
    command = [sys.executable, "-m", f"kernels_tests.vllm_launch.plugin.{module}", *SMALL, "--out", str(folder), engine]
    path = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, MUTANT: mutant}
    ended = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=600)
    return ended.returncode, [line for line in ended.stdout.splitlines() if line.startswith("FAIL")]


@pytest.mark.long
@pytest.mark.server
@pytest.mark.fp8_cache
@pytest.mark.parametrize("engine", ["bf16", "fp8"])
def test_an_engine_with_our_backend_passes(tmp_path, engine):
    assert run_soak(tmp_path, engine) == (0, [])
    assert json.loads((tmp_path / "results.json").read_text())[engine]["record"]["decoder"] == "lowp"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engines.log", "results.json", "verdicts.txt"]


@pytest.mark.long
@pytest.mark.server
@pytest.mark.fp8_cache
@pytest.mark.parametrize(
    ("mutant", "engine", "words"),
    [
        ("rows", "bf16", "part"),
        ("rows", "fp8", "part"),
        ("aborts", "bf16", "still in use"),
        ("blocks", "bf16", "still in use"),
        ("nan", "bf16", "finite"),
    ],
)
def test_a_wrong_engine_fails(tmp_path, mutant, engine, words):
    code, lines = run_soak(tmp_path, engine, "soak_mutants", mutant)
    assert code == 1 and any(words in line for line in lines)
