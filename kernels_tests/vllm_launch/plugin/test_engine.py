"""vLLM's engine with our backend on a CPU: scheduler, runner and cache manager are vLLM's, kernels are references.

Chunked prefills, mixed batches and prefix caching in each run.
"""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from kernels_tests.vllm_launch.plugin.engine_script import CACHED, TOKENS
from kernels_tests.vllm_launch.plugin.test_registration import REPO
from vllm_launch.decoder.contract import INT8

FP8 = {"kv_cache_dtype": "fp8"}

pytestmark = [pytest.mark.server, pytest.mark.fp8_cache]


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    """Return a function that answers the prompts with an engine of these arguments, once for each."""
    folder, answers = tmp_path_factory.mktemp("engines"), {}

    def run(attention, **arguments):
        key = json.dumps([attention, arguments])
        if key not in answers:
            out = folder / f"{len(answers)}.json"
            script = "kernels_tests.vllm_launch.plugin.engine_script"
            command = [sys.executable, "-m", script, attention, str(out), json.dumps(arguments)]
            path = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
            ended = subprocess.run(
                command, cwd=REPO, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=600
            )
            assert ended.returncode == 0, (ended.stdout + ended.stderr)[-5000:]
            answers[key] = json.loads(out.read_text())
        return answers[key]

    return run


def generated_distance(candidate, reference) -> float:
    """Mean |log p difference| of generated tokens up to the first that differs."""
    distances = []
    for a, b in zip(candidate["answers"], reference["answers"], strict=True):
        pairs = zip(a["tokens"], b["tokens"], strict=True)
        count = next((i for i, (x, y) in enumerate(pairs) if x != y), TOKENS)
        logs = zip(a["logprobs"][:count], b["logprobs"][:count], strict=True)
        distances += [abs(x - y) for x, y in logs]
    assert len(distances) > len(candidate["answers"]) * TOKENS // 4  # texts part late
    return sum(distances) / len(distances)


def prompt_distance(candidate, reference) -> float:
    pairs = list(zip(candidate["prompt"], reference["prompt"], strict=True))
    return sum(abs(x - y) for x, y in pairs) / len(pairs)


def test_bf16_answers_as_vllm_does(answer):
    ours, stock = answer("ours"), answer("stock")
    assert generated_distance(ours, stock) < 0.02
    assert prompt_distance(ours, stock) < 0.02
    assert [ours["answers"][i]["tokens"] for i in CACHED] == [repeat["tokens"] for repeat in ours["cached"]]


@pytest.mark.long
def test_fp8_is_near_bf16(answer):
    ours, stock = answer("ours", kv_cache_dtype="fp8"), answer("stock")
    assert generated_distance(ours, stock) < 0.06
    assert prompt_distance(ours, stock) < 0.10


@pytest.mark.long
def test_int8_is_nearer_to_bf16_than_fp8(answer):
    """Prompts are scored through chunked prefills, whose contexts are read from the cache."""
    bf16, fp8, int8 = (answer("ours", **arguments) for arguments in ({}, FP8, {"kv_cache_dtype": INT8}))
    for distance in (generated_distance, prompt_distance):  # 0.40 and 0.47, near the floor of BF16's own rounding
        assert distance(int8, bf16) < 0.6 * distance(fp8, bf16)


@pytest.mark.long
@pytest.mark.parametrize(
    "arguments",
    [{"num_gpu_blocks_override": 12}, {"disable_hybrid_kv_cache_manager": True}],
    ids=["preemption", "one KV cache group"],
)
def test_the_same_answers_by_other_ways(answer, arguments):
    changed, ours = answer("ours", kv_cache_dtype="fp8", **arguments), answer("ours", kv_cache_dtype="fp8")
    assert generated_distance(changed, ours) < 0.02
