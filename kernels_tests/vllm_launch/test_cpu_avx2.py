"""A real server with FP8 and BF16 layers on a CPU with AVX2 only, emulated where the CPU has more."""

import numpy as np
import psutil
import pytest

from bench.accuracy import forced, greedy, sink_check
from bench.accuracy.texts import Text, tokenize
from bench.servers.client import endpoint_of
from kernels_tests import narrow_cpu
from kernels_tests.processes import free_port
from vllm_launch import plan, profile, server, software
from vllm_launch.model import EMBEDDED, find

pytestmark = [pytest.mark.server, pytest.mark.fp8_cache, pytest.mark.long]
PROMPT, SCORED, TEXTS = 128, 64, 4


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    device, version = software.vllm_build()
    if device != "cpu":
        pytest.skip("vLLM here is not the CPU build")
    folder = tmp_path_factory.mktemp("avx2")
    planned = plan.make(
        profile.load("fp8-skip-sliding"),
        port=free_port(),
        cache_root=folder,
        model_path=str(EMBEDDED),
        extra=forced.arguments(device, version),
    )
    environment = planned.environment | narrow_cpu.environment(folder / "plugin")
    with server.running(
        planned.model_copy(update={"environment": environment}), folder, show_status=lambda line: None
    ) as ready:
        yield ready


def test_vllm_runs_its_library_for_avx2_and_our_widening(running):
    children = psutil.Process(running.supervisor.pid).children(recursive=True)
    libraries = set().union(*(narrow_cpu.loaded(child.pid) for child in children))
    assert libraries == {narrow_cpu.LIBRARY}
    assert running.resolved.cpu_attention == "widened" and running.resolved.cpu_cache_writer
    assert running.resolved.kv_skip_layers == ["sliding_window"]
    assert running.resolved.kv_block_sizes == [128, 256], "pages of FP8 and of BF16 share the memory"


def test_its_answers_are_right_in_decode_and_prefill(running):
    """Compare with transformers in FP32, with the true sinks and with wrong ones, on reused pages."""
    ids = tokenize(EMBEDDED, (EMBEDDED / "heldout.jsonl").read_text(encoding="utf-8"))
    texts = [Text(ids=ids[i * 1000 : i * 1000 + PROMPT + SCORED], start=PROMPT) for i in range(TEXTS)]
    exact = sink_check.of_transformers(find(str(EMBEDDED)), texts)
    for path in ("decode", "prefill", "decode"):
        scored = np.concatenate([text.logprobs for text in forced.score_all(endpoint_of(running), texts, path)])
        distances = {name: np.abs(scored - np.array(values)).mean() for name, values in exact.items()}
        assert distances["true"] < 0.12, distances
        assert all(distances[wrong] > 4 * distances["true"] for wrong in sink_check.WRONG), distances
    assert greedy.answer(endpoint_of(running), "The capital of France is", 8).text.startswith(" Paris")
