"""The CPU cache writer against correctly rounded storage, through vLLM's own CPU kernels."""

import itertools
from types import SimpleNamespace

import pytest
import torch

ops = pytest.importorskip("vllm._custom_ops", reason="vLLM for the CPU is not installed")
from vllm.platforms import current_platform  # noqa: E402

if not current_platform.is_cpu():
    pytest.skip("vLLM here is not the CPU build", allow_module_level=True)
current_platform.import_kernels()

from vllm_launch.plugin.cpu_cache import RoundingCpuImpl, round_to_grid  # noqa: E402
from vllm_launch.plugin.cpu_storage import FP8_DTYPES  # noqa: E402

HEADS, KV_HEADS, HEAD_DIM, BLOCK = 16, 2, 64, 128
LAYER = SimpleNamespace(_k_scale_float=1.0, _v_scale_float=1.0, _k_scale=1.0, _v_scale=1.0, isa="vec")


def write_cache(kv_cache_dtype, key, value, *, rounding):
    """The cache after vLLM's kernel wrote key and value [tokens, kv_heads, head_dim], rounded by us first or not."""
    blocks = -(-len(key) // BLOCK)
    cache = torch.zeros(blocks, KV_HEADS, BLOCK, 2 * HEAD_DIM, dtype=torch.uint8)
    if rounding:
        dtype = FP8_DTYPES[kv_cache_dtype]
        key, value = round_to_grid(key, 1.0, dtype), round_to_grid(value, 1.0, dtype)
    k_cache, v_cache = cache.view(blocks, KV_HEADS, 2 * BLOCK, HEAD_DIM).chunk(2, dim=2)
    slots = torch.arange(len(key))
    ops.cpu_attn_reshape_and_cache(key, value, k_cache, v_cache, slots, LAYER.isa, 1.0, 1.0, kv_cache_dtype)
    return cache


def decode(kv_cache_dtype, cache, query, sinks, tokens):
    """Attention of one query token [1, heads, head_dim] to the cache, by vLLM's CPU kernel."""
    blocks = len(cache)
    k_cache, v_cache = cache.view(blocks, KV_HEADS, 2 * BLOCK, HEAD_DIM).chunk(2, dim=2)
    lengths, starts = torch.tensor([tokens], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    table = torch.arange(blocks, dtype=torch.int32)[None]
    schedule = ops.cpu_attn_get_scheduler_metadata(
        1, HEADS, KV_HEADS, HEAD_DIM, lengths, torch.bfloat16, starts, True, -1, LAYER.isa, True, None, kv_cache_dtype
    )
    out = torch.full_like(query, float("nan"))
    ops.cpu_attention_with_kv_cache(
        *(query, k_cache, v_cache, out, starts, lengths, HEAD_DIM**-0.5, True, None, -1, table, 0.0),
        *(schedule, sinks, None, 1.0, 1.0, kv_cache_dtype),
    )
    return out.double()


def attention(query, key, value, sinks):
    """The same attention to K and V in fp64."""
    key = key.double().repeat_interleave(HEADS // KV_HEADS, 1)
    value = value.double().repeat_interleave(HEADS // KV_HEADS, 1)
    scores = torch.einsum("hd,khd->hk", query[0].double(), key) * HEAD_DIM**-0.5
    weights = torch.cat([scores, sinks.double()[:, None]], -1).softmax(-1)[:, :-1]
    return torch.einsum("hk,khd->hd", weights, value)[None]


def relative(error, reference):
    return ((error - reference).norm() / reference.norm()).item()


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    tokens = 1000
    key, value = (torch.randn(tokens, KV_HEADS, HEAD_DIM).bfloat16() for _ in range(2))
    query = torch.randn(1, HEADS, HEAD_DIM).bfloat16()
    # Near the log-sum-exp of the scores, so that a dropped sink changes the result.
    sinks = (torch.randn(HEADS) + torch.log(torch.tensor(float(tokens)))).bfloat16()
    return key, value, query, sinks, tokens


@pytest.mark.native_fp8
@pytest.mark.parametrize("kv_cache_dtype", ["fp8", "fp8_e4m3", "fp8_e5m2"])
def test_rounding_first_stores_exactly_the_rounded_values(inputs, kv_cache_dtype):
    key, value, query, sinks, tokens = inputs
    dtype = FP8_DTYPES[kv_cache_dtype]
    key_stored, value_stored = (x.to(dtype) for x in (key, value))
    ours = write_cache(kv_cache_dtype, key, value, rounding=True)
    native = write_cache(kv_cache_dtype, key, value, rounding=False)
    reference = attention(query, key_stored.float(), value_stored.float(), sinks)
    ours_error = relative(decode(kv_cache_dtype, ours, query, sinks, tokens), reference)
    native_error = relative(decode(kv_cache_dtype, native, query, sinks, tokens), reference)
    assert ours_error < 4e-3, "only the kernel's own BF16 rounding may remain"
    assert native_error > 5 * ours_error, "vLLM rounds by itself now: remove this writer"


@pytest.mark.native_fp8
def test_rounding_at_least_halves_the_error_against_bf16_storage(inputs):
    key, value, query, sinks, tokens = inputs
    reference = attention(query, key, value, sinks)
    error = {
        rounding: relative(
            decode("fp8", write_cache("fp8", key, value, rounding=rounding), query, sinks, tokens), reference
        )
        for rounding in (True, False)
    }
    assert error[True] < 0.06
    assert error[True] < 0.6 * error[False], error


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_round_to_grid_matches_every_code_and_clamps(dtype):
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    grid = codes[codes.isfinite()].bfloat16()
    assert torch.equal(round_to_grid(grid, 1.0, dtype), grid)
    limit = torch.finfo(dtype).max
    edge = torch.tensor([2 * limit, -2 * limit, limit]).bfloat16()
    assert round_to_grid(edge, 1.0, dtype).tolist() == [limit, -limit, limit]
    assert round_to_grid(edge, 4.0, dtype).tolist() == [2 * limit, -2 * limit, limit]


def test_round_to_grid_rounds_to_nearest_at_a_scale():
    x = torch.linspace(-3, 3, 601).bfloat16()
    for scale, dtype in itertools.product((1.0, 0.25), FP8_DTYPES.values()):
        expected = (x.double() / scale).float().to(dtype).double() * scale
        assert torch.equal(round_to_grid(x, scale, dtype).double(), expected)


def test_the_write_goes_through_the_rounding(monkeypatch, inputs):
    """RoundingCpuImpl passes rounded K and V to vLLM's write, and does not change those of a BF16 cache."""
    key, value, *_ = inputs
    seen = []
    base = RoundingCpuImpl.__mro__[1]
    monkeypatch.setattr(base, "do_kv_cache_update", lambda self, layer, k, v, cache, slots: seen.append((k, v)))
    for dtype in (torch.float8_e4m3fn, None):
        impl = object.__new__(RoundingCpuImpl)
        impl.fp8_dtype = dtype
        impl.do_kv_cache_update(LAYER, key, value, None, None)
    assert torch.equal(seen[0][0].float(), key.to(torch.float8_e4m3fn).float())
    assert torch.equal(seen[0][1].float(), value.to(torch.float8_e4m3fn).float())
    assert torch.equal(seen[1][0], key)


def test_the_engine_sleeps_instead_of_spinning(monkeypatch):
    """The replaced name is that of vLLM's wait loop, and the sleep is short."""
    from vllm.distributed.device_communicators import shm_broadcast

    from vllm_launch import plugin

    spin = shm_broadcast.sched_yield
    monkeypatch.setattr(shm_broadcast, "sched_yield", spin)
    slept = []
    monkeypatch.setattr(plugin.time, "sleep", slept.append)
    plugin.sleep_instead_of_spinning()
    assert "sched_yield" in shm_broadcast.SpinCondition.wait.__code__.co_names
    shm_broadcast.SpinCondition.wait.__globals__["sched_yield"]()
    assert slept == [plugin.SPIN_SLEEP_S] and plugin.SPIN_SLEEP_S < 1e-3
