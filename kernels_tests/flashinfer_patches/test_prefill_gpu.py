"""Patched prefill on a GPU, upstream's own sink wrapper, and refused arguments."""

import pytest
import torch

from kernels_tests.flashinfer_patches.cases import SM_SCALE, faults, paged, queries, reference, sinks_near

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("built")]

E4M3, BF16, FP16 = torch.float8_e4m3fn, torch.bfloat16, torch.float16
# (length of the cache, queries) of each request; the averages reach each of FA2's three query tiles.
BATCHES = {"tile 16": [(300, 1), (17, 2)], "tile 64": [(9, 4), (1000, 3)], "tile 128": [(200, 200), (513, 64)]}


@pytest.mark.parametrize("window_left", [-1, 127])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("kv_type", "layout"), [(E4M3, "NHD"), (E4M3, "HND"), (BF16, "NHD")], ids=str)
def test_causal_prefill(workspace, batch, window_left, kv_type, layout):
    from kernels_tests.flashinfer_patches.runs import plan_prefill

    lengths, per_request = zip(*BATCHES[batch], strict=True)
    cache, q = paged(list(lengths), kv_type, layout=layout), queries(sum(per_request), BF16)
    shape = {"per_request": list(per_request), "window_left": window_left}
    scales = {"k_scale": 0.37, "v_scale": 2.9}
    sinks = sinks_near(reference(q, cache.tokens, None, k_scale=0.37, **shape)[1])
    wrapper = plan_prefill(workspace, cache, list(per_request), window_left=window_left)
    output, lse = wrapper.run(q, (cache.k, cache.v), sinks=sinks, return_lse=True, **scales)
    expected, expected_lse = reference(q, cache.tokens, sinks, **shape, **scales)
    assert faults(output, expected) == []
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=5e-3)
    assert faults(output, reference(q, cache.tokens, sinks.roll(1), **shape, **scales)[0])
    assert faults(output, reference(q, cache.tokens, None, **shape, **scales)[0])


@pytest.mark.parametrize("kv_type", [E4M3, BF16], ids=str)
def test_two_to_four_queries_a_request(workspace, kv_type):
    """Prefill of the shapes of speculative decoding: many long requests, few queries each."""
    from kernels_tests.flashinfer_patches.runs import plan_prefill

    lengths, per_request = [2, 4, 17, 130, 999, 2049, 4096, 5000], [2, 4, 3, 2, 4, 3, 2, 4]
    cache, q = paged(lengths, kv_type), queries(sum(per_request), BF16)
    shape, scales = {"per_request": per_request}, {"k_scale": 0.37, "v_scale": 2.9}
    sinks = sinks_near(reference(q, cache.tokens, None, k_scale=0.37, **shape)[1])
    output = plan_prefill(workspace, cache, per_request).run(q, (cache.k, cache.v), sinks=sinks, **scales)
    assert faults(output, reference(q, cache.tokens, sinks, **shape, **scales)[0]) == []


@pytest.mark.parametrize(
    ("q_type", "kv_type", "head_dim"), [(FP16, FP16, 64), (FP16, E4M3, 64), (BF16, E4M3, 128)], ids=str
)
def test_types_and_head_dims_of_prefill(workspace, q_type, kv_type, head_dim):
    from kernels_tests.flashinfer_patches.runs import plan_prefill

    cache, q = paged([200, 31], kv_type, head_dim=head_dim), queries(70, q_type, head_dim=head_dim)
    shape = {"per_request": [64, 6], "sm_scale": head_dim**-0.5, "window_left": 127}
    sinks = sinks_near(reference(q, cache.tokens, None, **shape)[1])
    wrapper = plan_prefill(workspace, cache, [64, 6], q_data_type=q_type, window_left=127)
    output = wrapper.run(q, (cache.k, cache.v), sinks=sinks)
    assert output.dtype == q_type
    assert faults(output, reference(q, cache.tokens, sinks, **shape)[0]) == []


def test_decode_equals_prefill_of_a_single_token(workspace):
    from kernels_tests.flashinfer_patches.runs import plan_decode, plan_prefill

    cache, q = paged([1, 17, 128, 1000], E4M3), queries(4, BF16)
    arguments = {"sinks": sinks_near(reference(q, cache.tokens, None)[1]), "k_scale": 0.9, "v_scale": 1.1}
    decoded = plan_decode(workspace, cache).run(q, (cache.k, cache.v), **arguments)
    prefilled = plan_prefill(workspace, cache, [1] * 4).run(q, (cache.k, cache.v), **arguments)
    assert faults(prefilled, decoded.double()) == []
    expected, _ = reference(q, cache.tokens, **arguments)
    assert faults(decoded, expected) == []
    assert faults(prefilled, expected) == []


def test_plans_with_and_without_sinks_alternate_on_a_wrapper(workspace):
    from kernels_tests.flashinfer_patches.runs import plan_decode

    cache, q = paged([200, 31], BF16), queries(2, BF16)
    sinks = sinks_near(reference(q, cache.tokens, None)[1])
    wrapper = plan_decode(workspace, cache)
    for _ in range(2):
        plan_decode(workspace, cache, wrapper=wrapper, use_sinks=False)
        assert faults(wrapper.run(q, (cache.k, cache.v)), reference(q, cache.tokens, None)[0]) == []
        with pytest.raises(ValueError, match="is ignored by this plan"):
            wrapper.run(q, (cache.k, cache.v), sinks=sinks)
        plan_decode(workspace, cache, wrapper=wrapper)
        assert faults(wrapper.run(q, (cache.k, cache.v), sinks=sinks), reference(q, cache.tokens, sinks)[0]) == []
        with pytest.raises(ValueError, match="requires sinks="):
            wrapper.run(q, (cache.k, cache.v))


def test_upstreams_sink_wrapper_keeps_bf16_and_fp8_modules_apart(workspace):
    from kernels_tests.flashinfer_patches.runs import plan_prefill, sink_wrapper

    for kv_type in (E4M3, BF16, E4M3):
        cache, q = paged([200, 31], kv_type), queries(5, BF16)
        shape = {"per_request": [4, 1]}
        sinks = sinks_near(reference(q, cache.tokens, None, **shape)[1])
        wrapper = sink_wrapper(workspace, "NHD", kv_type)
        plan_prefill(workspace, cache, [4, 1], wrapper=wrapper, use_sinks=False)
        output = wrapper.run(q, (cache.k, cache.v), sinks, SM_SCALE * 0.5, v_scale=0.5)
        expected, _ = reference(q, cache.tokens, sinks, k_scale=0.5, v_scale=0.5, **shape)
        assert faults(output, expected) == []
        for wrong, arguments, named in (
            ("dtype", (sinks.bfloat16(), SM_SCALE), {}),
            ("shape", (sinks[:8], SM_SCALE), {}),
            ("device", (sinks.cpu(), SM_SCALE), {}),
            ("positionally", (), {"sinks": sinks}),
            ("multiply them into sm_scale", (sinks, SM_SCALE), {"k_scale": 0.5}),
        ):
            with pytest.raises(ValueError, match=wrong):
                wrapper.run(q, (cache.k, cache.v), *arguments, **named)


def test_a_cuda_core_plan_refuses_sinks(workspace):
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    from kernels_tests.flashinfer_patches.runs import plan_decode

    cache, q = paged([200, 31], BF16), queries(2, BF16)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD")
    plan_decode(workspace, cache, wrapper=wrapper, use_sinks=False)
    assert faults(wrapper.run(q, (cache.k, cache.v)), reference(q, cache.tokens, None)[0]) == []
    with pytest.raises(ValueError, match="is ignored by this plan"):
        wrapper.run(q, (cache.k, cache.v), sinks=torch.zeros(64, device="cuda"))
    with pytest.raises(NotImplementedError, match="use_tensor_cores"):
        plan_decode(workspace, cache, wrapper=wrapper)


def test_keys_and_values_of_different_strides_are_refused(workspace):
    from kernels_tests.flashinfer_patches.runs import plan_decode

    cache, q = paged([200, 31], E4M3), queries(2, BF16)
    sinks = sinks_near(reference(q, cache.tokens, None)[1])
    padded = cache.v.view(torch.uint8).repeat(1, 2, 1, 1).view(E4M3)[:, : cache.page_size]
    with pytest.raises(Exception, match="strides"):  # from C++, without a type of its own
        plan_decode(workspace, cache).run(q, (cache.k, padded), sinks=sinks)
