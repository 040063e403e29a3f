"""Prefills by FlashAttention 2, which other GPUs than Hopper take; it runs on Hopper too. Needs a vLLM for CUDA.

The cache is full of NaN where nothing is written, page 0 and freed pages too, and so is the memory that steps allocate.
"""

from itertools import pairwise

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from kernels_tests.vllm_launch.plugin.steps import Setup, assert_close, attention, make_step, run, serve
from kernels_tests.vllm_launch.plugin.test_impl import STEPS
from kernels_tests.vllm_launch.plugin.test_impl_gpu import GPT_OSS, LARGE_STEPS, poisoned_memory  # noqa: F401
from vllm_launch.plugin.attention import buffers
from vllm_launch.plugin.attention.flash_attention import fa2, fa3

pytestmark = pytest.mark.gpu

PREFILLS = {name: requests for name, requests in (STEPS | LARGE_STEPS).items() if any(new > 1 for new, _ in requests)}


def gpt_oss(window: int | None = None, kv_dtype: str = "auto", **changes) -> Setup:
    return Setup(window, kv_dtype, **GPT_OSS | changes)


@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("requests", PREFILLS.values(), ids=PREFILLS)
def test_a_step_is_attention_of_each_request(monkeypatch, requests, kv_dtype, window):
    server = serve(monkeypatch, gpt_oss(window, kv_dtype), attention=fa2)
    step = make_step(server, requests)
    assert_close(run(server, step), step.expected)


@pytest.mark.parametrize(
    "heads", [{"heads": 8, "kv_heads": 1}, {"heads": 16, "kv_heads": 2}, {"heads": 32, "kv_heads": 8, "head_dim": 128}]
)
@pytest.mark.parametrize("window", [None, 128])
def test_heads_of_other_models_and_ranks(monkeypatch, heads, window):
    server = serve(monkeypatch, gpt_oss(window, **heads), attention=fa2)
    step = make_step(server, STEPS["mixed"])
    assert_close(run(server, step), step.expected)


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
def test_a_context_over_the_scratch_runs_in_parts(monkeypatch, kv_dtype):
    monkeypatch.setattr(buffers, "SCRATCH_BYTES", 1024 * 2048)  # 1024 tokens
    server = serve(monkeypatch, gpt_oss(kv_dtype=kv_dtype, step_tokens=512), attention=fa2)
    step = make_step(server, [(1, 9), (60, 8000), (300, 4000), (20, 200)])
    assert [len(group) for group in step.metadata.prefills[-1]] == [9, 5, 1]
    assert_close(run(server, step), step.expected)


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
def test_freed_pages_of_a_window_are_not_read(monkeypatch, kv_dtype):
    """vLLM 0.26 leaves them in the table, as page 0 here, and another layer may write what is NaN to this one."""
    server = serve(monkeypatch, gpt_oss(128, kv_dtype), attention=fa2)
    step = make_step(server, [(1, 1000), (512, 5000), (20, 300)], unused_page=0)
    freed = torch.ones(len(server.cache), dtype=torch.bool, device="cuda")
    freed[step.common.block_table_tensor.unique()] = False
    freed[0] = True
    server.cache.view(torch.uint8)[freed] = 0xFF  # NaN in both formats
    assert_close(run(server, step), step.expected)


@pytest.mark.parametrize("sink", [-torch.inf, -1e4, 0.0, 8.0, 1e4])
@pytest.mark.parametrize(("window", "requests"), [(None, [(300, 300), (60, 900)]), (128, [(300, 900)])])
def test_extreme_sinks(monkeypatch, requests, window, sink):
    server = serve(monkeypatch, Setup(window, "fp8", device="cuda"), attention=fa2)
    with torch.no_grad():
        server.impl.sinks.fill_(sink)
    server.impl.process_weights_after_loading(torch.bfloat16)
    step = make_step(server, requests)
    assert_close(run(server, step), step.expected)


@pytest.mark.parametrize("kernel", [fa2, fa3])
@pytest.mark.parametrize(("causal", "window_left"), [(False, -1), *((True, left) for left in (-1, 0, 1, 127))])
def test_lse_and_output_are_those_of_float64(kernel, causal, window_left):
    queries, keys = [0, 1, 130, 430, 431], [0, 1, 130, 1130, 1200]
    random = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(count, heads, 64, generator=random, device="cuda").mul(2).bfloat16()
        for count, heads in ((queries[-1], 64), (keys[-1], 8), (keys[-1], 8))
    )
    out = torch.full_like(q, torch.nan)
    lse = kernel(
        *(q, k, v, out),
        cu_queries=torch.tensor(queries, dtype=torch.int32, device="cuda"),
        cu_keys=torch.tensor(keys, dtype=torch.int32, device="cuda"),
        longest_query=300,
        longest_key=1000,
        sm_scale=0.125,
        causal=causal,
        window_left=window_left,
        sinks=None,
        with_lse=True,
    )
    for (first, end), (first_key, end_key) in zip(pairwise(queries), pairwise(keys), strict=True):
        position = torch.arange(end - first, device="cuda") + (end_key - first_key) - (end - first)
        expected, expected_lse = attention(
            *(q[first:end], k[first_key:end_key], v[first_key:end_key]),
            position if causal else None,
            window_left=window_left,
            sinks=None,
            sm_scale=0.125,
        )
        assert_close(out[first:end], expected)
        torch.testing.assert_close(lse[:, first:end].double(), expected_lse, atol=1e-3, rtol=1e-4)


def test_planning_a_prefill_does_not_synchronise(monkeypatch):
    server = serve(monkeypatch, gpt_oss(), attention=fa2)
    step = make_step(server, LARGE_STEPS["mixed"])
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.metadata = server.builder.build(0, step.common)
        out = run(server, step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(out, step.expected)
