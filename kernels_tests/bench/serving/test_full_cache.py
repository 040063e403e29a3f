"""At the concurrency where BF16's KV cache is full and FP8's is not: the counters of two real servers."""

import pytest

from bench.servers.client import endpoint_of
from bench.serving.load import benchy
from bench.serving.load.book_server import book_server
from bench.suite import GridPoint
from kernels_tests.processes import free_port
from vllm_launch import plan, preflight, profile, server

pytestmark = [pytest.mark.server, pytest.mark.long, pytest.mark.fp8_cache]
CONTEXT = 640  # the most tokens of a request
SMALL_CACHE = ["--kv-cache-memory-bytes", str(8 * 2**20), "--max-model-len", str(CONTEXT)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Capacity and attempt of each profile, with as many requests as fit into the FP8 cache."""
    results, concurrency = {}, None
    with book_server(320) as book_url:
        for name in ("baseline", "fp8"):
            folder = tmp_path_factory.mktemp(name)
            planned = plan.make(
                profile.load(name), port=free_port(), cache_root=folder / "cache", overrides=SMALL_CACHE
            )
            # On a CPU the variable, which the profiles set, goes before the argument.
            environment = {key: value for key, value in planned.environment.items() if key != preflight.SPACE}
            planned = planned.model_copy(update={"environment": environment})
            with server.running(planned, folder, lambda line: None) as running:
                capacity = running.resolved.kv_capacity_tokens
                concurrency = concurrency or int(2 * capacity / CONTEXT)
                point = GridPoint(depth=0, prompt=320, output=256, concurrency=concurrency)
                attempt = benchy.measure(endpoint_of(running), point, 1, folder, book_url, lambda: None)
                results[name] = capacity, attempt
    return results


def test_a_full_cache_queues_or_preempts_requests_and_fp8_has_room(measured):
    (capacity, full), (fp8_capacity, roomy) = measured["baseline"], measured["fp8"]
    assert fp8_capacity == pytest.approx(2 * capacity, rel=0.05)
    assert capacity < full.concurrency * CONTEXT < fp8_capacity
    assert full.failures == roomy.failures == []
    assert full.counters.kv_cache_usage > 0.9
    assert full.counters.waiting + full.counters.preemptions > 0
    assert full.counters.running < full.concurrency or full.counters.preemptions > 0
    assert roomy.counters.kv_cache_usage < 0.9
    assert roomy.counters.preemptions == 0 and roomy.counters.running == roomy.concurrency
