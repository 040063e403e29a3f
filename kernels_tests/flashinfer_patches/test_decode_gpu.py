"""Patched decode on a GPU: the FP8 sink kernel runs, and computes attention over the stored cache."""

import math
from pathlib import Path

import pytest
import torch

from kernels_tests.flashinfer_patches.cases import MUTANTS, QO_HEADS, faults, paged, queries, reference, sinks_near

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("built")]

E4M3, BF16, FP16 = torch.float8_e4m3fn, torch.bfloat16, torch.float16
LENGTHS = [1, 17, 128, 1000]


def plan(*arguments, **options):
    from kernels_tests.flashinfer_patches.runs import plan_decode

    return plan_decode(*arguments, **options)


def near(q, cache, **options):
    return sinks_near(reference(q, cache.tokens, None, **options)[1])


@pytest.mark.parametrize(("batch", "length"), [(1, 128), (1, 1024), (4, 128), (4, 1024)])
@pytest.mark.parametrize("kv_type", [E4M3, BF16], ids=["e4m3", "bf16"])
def test_shapes_within_the_stated_tolerance(workspace, kv_type, batch, length):
    cache, q = paged([length] * batch, kv_type), queries(batch, BF16)
    sinks = 5 * torch.rand(QO_HEADS, device="cuda", generator=torch.Generator("cuda").manual_seed(2))
    output = plan(workspace, cache).run(q, (cache.k, cache.v), sinks=sinks)
    expected, _ = reference(q, cache.tokens, sinks)
    assert faults(output, expected) == []
    torch.testing.assert_close(output.double(), expected, rtol=1e-2, atol=1e-3)
    # The error of the format has its own bound, far above that tolerance.
    exact, _ = reference(q, cache.exact, sinks)
    relative = (output - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert relative.max() <= (0.10 if kv_type == E4M3 else 6e-3)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("page_size", [16, 32, 64])
@pytest.mark.parametrize("window_left", [-1, 127])
def test_pages_layouts_and_windows(workspace, page_size, layout, window_left):
    cache, q = paged(LENGTHS, E4M3, page_size=page_size, layout=layout), queries(len(LENGTHS), BF16)
    options = {"k_scale": 0.37, "v_scale": 2.9}
    sinks = near(q, cache, window_left=window_left, k_scale=0.37)
    wrapper = plan(workspace, cache, window_left=window_left)
    output, lse = wrapper.run(q, (cache.k, cache.v), sinks=sinks, return_lse=True, **options)
    expected, expected_lse = reference(q, cache.tokens, sinks, window_left=window_left, **options)
    assert faults(output, expected) == []
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=5e-3)


@pytest.mark.parametrize(("q_type", "kv_type"), [(BF16, E4M3), (BF16, BF16), (FP16, E4M3), (FP16, FP16)], ids=str)
def test_types_of_query_and_cache(workspace, q_type, kv_type):
    cache, q = paged(LENGTHS, kv_type), queries(len(LENGTHS), q_type)
    sinks = near(q, cache)
    output = plan(workspace, cache, q_type=q_type).run(q, (cache.k, cache.v), sinks=sinks)
    assert output.dtype == q_type
    assert faults(output, reference(q, cache.tokens, sinks)[0]) == []


def test_head_dim_128(workspace):
    cache, q = paged(LENGTHS, E4M3, head_dim=128), queries(len(LENGTHS), BF16, head_dim=128)
    options = {"k_scale": 0.37, "v_scale": 2.9}
    shape = {"sm_scale": 128**-0.5}
    sinks = near(q, cache, k_scale=0.37, **shape)
    output = plan(workspace, cache).run(q, (cache.k, cache.v), sinks=sinks, **options)
    assert faults(output, reference(q, cache.tokens, sinks, **shape, **options)[0]) == []


def test_three_queries_a_request(workspace):
    """Decode as in speculative decoding: the last three tokens of each request, causal."""
    import flashinfer

    if flashinfer.__version__ == "0.6.14":
        with pytest.raises(NotImplementedError, match="q_len_per_req=3"):
            plan(workspace, paged([3, 17], E4M3), q_len_per_req=3)
        return
    lengths = [3, 17, 128, 1000]
    cache, q = paged(lengths, E4M3), queries(3 * len(lengths), BF16)
    shape = {"per_request": [3] * len(lengths)}
    sinks = near(q, cache, **shape)
    output = plan(workspace, cache, q_len_per_req=3).run(q, (cache.k, cache.v), sinks=sinks)
    assert faults(output, reference(q, cache.tokens, sinks, **shape)[0]) == []


@pytest.mark.parametrize("length", [1, 2, 15, 16, 33, 127, 129, 255, 2049, 8191])
def test_odd_lengths(workspace, length):
    cache, q = paged([length, 3], E4M3), queries(2, BF16)
    sinks = near(q, cache)
    output = plan(workspace, cache).run(q, (cache.k, cache.v), sinks=sinks)
    assert faults(output, reference(q, cache.tokens, sinks)[0]) == []


def test_sinks_at_their_limits(workspace):
    cache, q = paged(LENGTHS, E4M3), queries(len(LENGTHS), BF16)
    wrapper = plan(workspace, cache)
    minus_infinity = torch.full((QO_HEADS,), -math.inf, device="cuda")
    plain, plain_lse = wrapper.run(q, (cache.k, cache.v), sinks=minus_infinity, return_lse=True)
    expected, expected_lse = reference(q, cache.tokens, None)
    assert faults(plain, expected) == []
    torch.testing.assert_close(plain_lse.double(), expected_lse, rtol=0, atol=5e-3)
    absorbed, lse = wrapper.run(q, (cache.k, cache.v), sinks=torch.full_like(minus_infinity, 1e4), return_lse=True)
    assert not absorbed.any()
    torch.testing.assert_close(lse, torch.full_like(lse, 1e4 / math.log(2)))


def test_raw_logits_far_below_the_old_sentinel(workspace):
    # Raw logits of -56,000 to -115,000, scaled by k_scale to -3 to -7; FlashInfer's sentinel of masked logits was -5e4.
    cache = paged([1, 40, 700], E4M3, key=lambda randn: -340 + 35 * randn[..., :1] + 20 * randn)
    q = torch.full((3, QO_HEADS, 64), 4.0, dtype=BF16, device="cuda")
    options = {"k_scale": 2.0**-11, "v_scale": 0.5}
    wrapper = plan(workspace, cache)
    for sinks in (torch.full((QO_HEADS,), -math.inf, device="cuda"), near(q, cache, k_scale=2.0**-11)):
        output = wrapper.run(q, (cache.k, cache.v), sinks=sinks, **options)
        assert faults(output, reference(q, cache.tokens, sinks, **options)[0]) == []


def test_the_module_and_the_kernel_that_ran(workspace):
    cache, q = paged(LENGTHS, E4M3), queries(len(LENGTHS), BF16)
    wrapper, sinks = plan(workspace, cache), near(q, cache)
    uri = wrapper._cached_module.uri
    assert "attention_sink" in uri and "dtype_kv_e4m3" in uri and "dtype_q_bf16" in uri
    assert f"/{uri}.so" in Path("/proc/self/maps").read_text()
    arguments = {"sinks": sinks, "k_scale": 0.5, "v_scale": 0.5, "out": torch.empty_like(q)}
    wrapper.run(q, (cache.k, cache.v), **arguments)
    kernels = kernels_of(lambda: wrapper.run(q, (cache.k, cache.v), **arguments))
    assert any("AttentionSink" in name and "fp8_e4m3" in name for name in kernels), kernels
    # v_scale is applied inside: no elementwise kernel follows.
    assert all("flashinfer" in name for name in kernels), kernels


def kernels_of(run) -> list[str]:
    """Names of the kernels that `run` launches."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert names, "the profiler saw no kernel"
    return names


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_check_rejects_a_wrong_kernel(workspace, mutant):
    cache, q = paged(LENGTHS, E4M3), queries(len(LENGTHS), BF16)
    options = {"k_scale": 0.37, "v_scale": 1.03}
    sinks = near(q, cache, window_left=127, k_scale=0.37)
    output = plan(workspace, cache, window_left=127).run(q, (cache.k, cache.v), sinks=sinks, **options)
    assert faults(output, reference(q, cache.tokens, sinks, window_left=127, **options)[0]) == []
    wrong, changes = MUTANTS[mutant](sinks)
    assert faults(output, reference(q, cache.tokens, wrong, **({"window_left": 127} | options | changes))[0])


def graph_wrapper(workspace, cache, pages: int):
    """Return a decode wrapper for CUDA graphs of the cache's batch, with buffers for `pages` pages."""
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    return BatchDecodeWithPagedKVCacheWrapper(
        workspace,
        "NHD",
        use_cuda_graph=True,
        use_tensor_cores=True,
        paged_kv_indptr_buffer=cache.indptr.clone(),
        paged_kv_indices_buffer=torch.zeros(pages, dtype=torch.int32, device="cuda"),
        paged_kv_last_page_len_buffer=cache.last_page_len.clone(),
    )


def plan_like_vllm(wrapper, cache, *, first: bool):
    """Plan like vLLM's fast_plan_decode: host tensors, plan() once, then fast_decode_plan, which copies nothing."""
    from flashinfer.decode import fast_decode_plan

    host = (cache.indptr.cpu(), cache.indices, cache.last_page_len.cpu(), QO_HEADS, 8, 64, 16)
    types = {"q_data_type": BF16, "kv_data_type": E4M3, "fixed_split_size": -1, "disable_split_kv": False}
    if first:
        wrapper.plan(*host, o_data_type=BF16, use_sinks=True, **types)
        return
    wrapper._paged_kv_indptr_buf.copy_(cache.indptr)
    wrapper._paged_kv_indices_buf[: len(cache.indices)].copy_(cache.indices)
    wrapper._paged_kv_last_page_len_buf.copy_(cache.last_page_len)
    fast_decode_plan(wrapper, *host, **types)


@pytest.mark.parametrize("planner", ["plan", "vLLM's fast plan"])
def test_a_cuda_graph_replays_new_lengths_pages_and_sinks(workspace, planner):
    first = paged([100, 7, 512], E4M3, total_pages=80)
    wrapper = graph_wrapper(workspace, first, pages=80)

    def replan(cache, **options):
        if planner == "plan":
            plan(workspace, cache, wrapper=wrapper)
        else:
            plan_like_vllm(wrapper, cache, **options)

    k, v, q = first.k.clone(), first.v.clone(), queries(3, BF16)
    sinks, output = near(q, first), torch.empty_like(q)
    replan(first, first=True)
    wrapper.run(q, (k, v), sinks=sinks, out=output, v_scale=1.5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        wrapper.run(q, (k, v), sinks=sinks, out=output, v_scale=1.5)
    for seed, lengths in ((5, [33, 600, 1]), (6, [1, 1, 1024])):
        cache = paged(lengths, E4M3, total_pages=80, seed=seed)
        k.view(torch.uint8).copy_(cache.k.view(torch.uint8))
        v.view(torch.uint8).copy_(cache.v.view(torch.uint8))
        q.copy_(queries(3, BF16, seed=seed))
        sinks.copy_(near(q, cache))
        replan(cache, first=False)
        graph.replay()
        assert faults(output, reference(q, cache.tokens, sinks, v_scale=1.5)[0]) == []


def test_fast_decode_plan_keeps_the_sinks(workspace):
    from flashinfer.decode import fast_decode_plan

    wrapper = plan(workspace, paged([5, 5], E4M3))
    cache, q = paged([300, 77], E4M3, seed=9), queries(2, BF16)
    sinks = near(q, cache)
    geometry = (cache.indptr, cache.indices, cache.last_page_len, QO_HEADS, 8, 64, 16)
    fast_decode_plan(wrapper, *geometry, q_data_type=BF16, kv_data_type=E4M3)
    output = wrapper.run(q, (cache.k, cache.v), sinks=sinks)
    assert faults(output, reference(q, cache.tokens, sinks)[0]) == []
