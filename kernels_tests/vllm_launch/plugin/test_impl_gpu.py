"""A layer's attention over made steps on an H200: our kernels and FlashAttention 3. Needs a vLLM for CUDA.

The cache is full of NaN where nothing is written, and so is the memory that the steps allocate.
"""

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from kernels_tests.vllm_launch.plugin.steps import (
    KV_DTYPES,
    Server,
    Step,
    assert_close,
    assert_mutant_fails,
    make_step,
    run,
    serve,
    setup_of,
)
from kernels_tests.vllm_launch.plugin.test_impl import MUTANTS, STEPS
from vllm_launch.plugin.attention import buffers

pytestmark = pytest.mark.gpu

GPT_OSS = {"heads": 64, "kv_heads": 8, "max_model_len": 8192, "step_tokens": 4096, "requests": 32, "device": "cuda"}
LARGE_STEPS = {
    "decode": [(1, length) for length in (1, 2, 17, 128, 129, 1000, 4095, 8000)],
    "32 decodes": [(1, 37 * n + 5) for n in range(32)],
    "prompts": [(3000, 3000), (128, 128), (129, 129), (1000, 1000)],
    "with context": [(512, 8000), (20, 5000), (1000, 1100)],
    "mixed": [(1, 8000), (1, 30), (700, 6000), (16, 1040), (2000, 2000), (3, 3)],
}


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill the memory that the next allocations get with NaN."""
    torch.full((2**28,), torch.nan, device="cuda")
    for size in (2**10, 2**16, 2**19):
        [torch.full((size,), torch.nan, device="cuda") for _ in range(16)]


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Return a function that starts a layer of gpt-oss with this KV format; further arguments are Setup's."""

    def start(kv_format: str, window: int | None = None, **changes) -> Server:
        return serve(monkeypatch, setup_of(monkeypatch, tmp_path, kv_format, window, **GPT_OSS | changes))

    return start


@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("kv_format", KV_DTYPES)
@pytest.mark.parametrize("requests", (STEPS | LARGE_STEPS).values(), ids=STEPS | LARGE_STEPS)
def test_a_step_is_attention_of_each_request(start, requests, kv_format, window):
    server = start(kv_format, window)
    step = make_step(server, requests)
    assert_close(run(server, step), step.expected)


@pytest.mark.parametrize(("kv_format", "mutate"), MUTANTS.values(), ids=MUTANTS)
def test_wrong_scales_give_wrong_attention(monkeypatch, start, kv_format, mutate):
    server = start(kv_format)
    for requests in (LARGE_STEPS["decode"], LARGE_STEPS["with context"]):
        assert_mutant_fails(monkeypatch, server, make_step(server, requests), mutate)


@pytest.mark.parametrize(
    "heads", [{"heads": 8, "kv_heads": 1}, {"heads": 16, "kv_heads": 2}, {"heads": 32, "kv_heads": 8, "head_dim": 128}]
)
@pytest.mark.parametrize("kv_format", KV_DTYPES)
def test_heads_of_other_models_and_ranks(start, heads, kv_format):
    server = start(kv_format, 128, **heads)
    step = make_step(server, STEPS["mixed"])
    assert_close(run(server, step), step.expected)


def test_scales_of_each_head(start):
    server = start("e4m3")
    scale = torch.logspace(-3, 1, 8, device="cuda")
    server.impl.kv_scales = server.impl.kv_scales._replace(k=scale, v=scale.flip(0).contiguous())
    step = make_step(server, STEPS["mixed"])
    assert_close(run(server, step), step.expected)


@pytest.mark.parametrize("requests", [[(4, 50), (4, 4), (4, 3000)], [(4, 50), (1, 9), (3, 3000), (1, 1), (60, 80)]])
@pytest.mark.parametrize("kv_format", ["e4m3", "int8", "int8-static"])
def test_several_query_tokens(start, requests, kv_format):
    server = start(kv_format, drafts=3)
    step = make_step(server, requests)
    assert_close(run(server, step), step.expected)


@pytest.mark.parametrize("kv_format", KV_DTYPES)
def test_a_context_over_the_scratch_runs_in_parts(monkeypatch, start, kv_format):
    monkeypatch.setattr(buffers, "SCRATCH_BYTES", 1024 * 2048)  # 1024 tokens
    server = start(kv_format, step_tokens=512)
    step = make_step(server, [(1, 9), (60, 8000), (300, 4000), (20, 200)])
    assert [len(group) for group in step.metadata.prefills[-1]] == [9, 5, 1]
    assert_close(run(server, step), step.expected)


def test_padding_is_zero(start):
    server = start("e4m3")
    step = make_step(server, [(1, 33), (30, 60)], padded_tokens=40)
    out = run(server, step)
    assert_close(out[: step.tokens], step.expected[: step.tokens])
    assert not out[step.tokens :].any()


@pytest.mark.parametrize("kv_format", ["e4m3", "int8", "int8-static"])
def test_after_the_start_nothing_compiles(monkeypatch, start, kv_format):
    from lowp.jit import compiler, launcher

    servers = [start(kv_format, window, drafts=3) for window in (None, 128)]

    def fail(*_):
        raise AssertionError("a kernel is compiled or loaded in a step")

    monkeypatch.setattr(compiler, "cubin", fail)
    monkeypatch.setattr(launcher, "load", fail)
    for server in servers:
        for requests in (*(STEPS | LARGE_STEPS).values(), [(4, 9)] * 7, [(3, 9), (2, 2)]):
            run(server, make_step(server, requests))


def step_calls(server: Server, step: Step, out: torch.Tensor) -> None:
    """What vLLM captures of a layer: the cache update and the attention."""
    arguments = (server.layer, step.key, step.value, server.cache, step.common.slot_mapping)
    server.impl.do_kv_cache_update(*arguments)
    server.impl.forward(server.layer, step.query, step.key, step.value, server.cache, step.metadata, out)


def write_over(step: Step, source: Step) -> None:
    """Give a captured step the inputs of another one, at the same addresses."""
    for name in ("query", "key", "value"):
        getattr(step, name).copy_(getattr(source, name))
    for name in ("seq_lens", "block_table_tensor", "slot_mapping"):
        getattr(step.common, name).copy_(getattr(source.common, name))


@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("kv_format", KV_DTYPES)
@pytest.mark.parametrize("query_tokens", [1, 4])
def test_a_graph_replays_other_lengths(start, query_tokens, kv_format, window):
    server = start(kv_format, window, drafts=query_tokens - 1)
    captured = make_step(server, [(query_tokens, query_tokens)] * 8)
    out = torch.full_like(captured.query, torch.nan)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step_calls(server, captured, out)
    for lengths in ([5, 900, 4, 8000, 129, 17, 1000, 64], [4000, 4, 5], [8000] * 8):
        requests = [(query_tokens, length) for length in lengths]
        step = make_step(server, requests, padded_tokens=8 * query_tokens, padded_requests=8)
        write_over(captured, step)
        out.fill_(torch.nan)
        graph.replay()
        assert_close(out, step.expected)
        assert not out[step.tokens :].any()


@pytest.mark.parametrize("kv_format", KV_DTYPES)
def test_a_decode_step_neither_allocates_nor_synchronises(start, kv_format):
    server = start(kv_format)
    step = make_step(server, LARGE_STEPS["decode"])
    out = run(server, step)
    allocated = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        step_calls(server, step, out)
        server.builder.build(0, step.common)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == allocated


@pytest.mark.parametrize("kv_format", KV_DTYPES)
def test_planning_a_prefill_does_not_synchronise(start, kv_format):
    server = start(kv_format)
    step = make_step(server, LARGE_STEPS["mixed"])
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.metadata = server.builder.build(0, step.common)
        out = torch.full_like(step.query, torch.nan)
        step_calls(server, step, out)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(out, step.expected)
