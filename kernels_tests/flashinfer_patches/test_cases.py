"""The caches of the GPU tests, and their check: it passes a rounded result and fails a wrong kernel. No GPU."""

import math

import pytest
import torch

from kernels_tests.flashinfer_patches.cases import (
    MUTANTS,
    SM_SCALE,
    Cache,
    attention,
    faults,
    paged,
    queries,
    sinks_near,
)
from kernels_tests.lowp import dense
from lowp.paged.shapes import HEAD_DIM, KV_HEADS, QUERY_HEADS

E4M3, BF16 = torch.float8_e4m3fn, torch.bfloat16
LENGTHS = [1, 17, 128, 1000]


def tokens(cache: Cache, row: int) -> list[torch.Tensor]:
    """K and V of a request, read from its pages: float64 [length, KV heads, head_dim]."""
    table, length = cache.block_table[row].long(), int(cache.seq_lens[row])
    pages = [half.double() if cache.layout == "NHD" else half.double().transpose(1, 2) for half in (cache.k, cache.v)]
    return [half[table].flatten(0, 1)[:length] for half in pages]


@pytest.mark.parametrize("window_left", [-1, 12])
def test_attention_is_that_of_each_request(window_left):
    cache, q = paged([20, 50], E4M3, device="cpu"), queries(4, torch.bfloat16, device="cpu")
    sinks, scales = torch.linspace(-3, 3, QUERY_HEADS), {"k_scale": 0.37, "v_scale": 2.9}
    output, lse = attention(q, cache, sinks, per_request=[3, 1], window_left=window_left, **scales)
    for row, rows in enumerate(q.split([3, 1])):
        request = (cache.k, cache.v, cache.block_table[row : row + 1], cache.seq_lens[row : row + 1], sinks)
        options = {"sm_scale": SM_SCALE * 0.37, "window_left": window_left, "layout": "NHD"}
        judged, judged_lse = dense.attention(rows[None], *request, **options)
        torch.testing.assert_close(output[3 * row : 3 * row + len(rows)], judged[0] * 2.9)
        torch.testing.assert_close(lse[3 * row : 3 * row + len(rows)], judged_lse[0] / math.log(2))


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("dtype", [E4M3, torch.bfloat16], ids=str)
def test_pages_hold_the_tokens_and_nan_elsewhere(layout, dtype):
    cache = paged(LENGTHS, dtype, page_size=32, layout=layout, device="cpu")
    rounded = paged(LENGTHS, BF16, page_size=32, device="cpu")
    assert len(cache.indices) < len(cache.k)
    assert int(cache.k.isnan().logical_not().sum()) == sum(LENGTHS) * KV_HEADS * HEAD_DIM
    for row, length in enumerate(LENGTHS):
        for stored, values in zip(tokens(cache, row), tokens(rounded, row), strict=True):
            assert torch.equal(stored, values.to(dtype).double()) and len(stored) == length
        table = cache.indices[cache.indptr[row] : cache.indptr[row + 1]]
        assert torch.equal(table, cache.block_table[row, : len(table)])
        assert length == (len(table) - 1) * 32 + cache.last_page_len[row] == cache.seq_lens[row]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_check_passes_a_rounded_result_and_fails_a_mutant(mutant):
    cache, q = paged(LENGTHS, E4M3, device="cpu"), queries(len(LENGTHS), torch.bfloat16, device="cpu")
    options = {"window_left": 127, "k_scale": 0.37, "v_scale": 1.03}
    sinks = sinks_near(attention(q, cache, None, window_left=127, k_scale=0.37)[1])
    expected, _ = attention(q, cache, sinks, **options)
    assert faults(expected.bfloat16(), expected) == []
    wrong, changes = MUTANTS[mutant](sinks)
    assert faults(attention(q, cache, wrong, **(options | changes))[0].bfloat16(), expected)


def test_the_check_sees_nan_and_a_broken_head():
    expected = torch.randn(3, QUERY_HEADS, HEAD_DIM, dtype=torch.float64)
    broken = expected.clone()
    broken[1, 5, 7] = math.nan
    assert faults(broken, expected) == ["1 elements are NaN or infinite"]
    broken = expected.clone()
    broken[:, 5] *= 1.005
    assert any("head 5" in fault for fault in faults(broken, expected))


def rounded_as_fa2_does(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, split: int, tile: int = 64) -> torch.Tensor:
    """Plain decode of one request in float64, but for FA2's three BF16 roundings. k, v: [length, heads, head_dim]."""
    bf16 = torch.bfloat16
    logits = torch.einsum("hd,jhd->hj", q.double(), k) * (SM_SCALE / math.log(2))
    outputs, denominators = [], []
    for split_logits, split_values in zip(logits.split(split, 1), v.split(split), strict=True):
        maximum = torch.full((len(q), 1), -math.inf, dtype=torch.float64)
        total, output = torch.zeros_like(maximum), torch.zeros(len(q), HEAD_DIM, dtype=torch.float64)
        for scores, values in zip(split_logits.split(tile, 1), split_values.split(tile), strict=True):
            raised = torch.maximum(maximum, scores.amax(1, keepdim=True))
            weights = torch.exp2(scores - raised).to(bf16).double()
            shrink = torch.exp2(maximum - raised)
            output = output * shrink + torch.einsum("hj,jhd->hd", weights, values)
            total, maximum = total * shrink + weights.sum(1, keepdim=True), raised
        outputs.append((output / total).to(bf16).double())
        denominators.append(maximum + total.log2())
    weights = torch.softmax(torch.stack(denominators) * math.log(2), 0)
    return (torch.stack(outputs) * weights).sum(0).to(bf16)


def test_the_bound_on_an_element_is_as_wide_as_fa2s_roundings():
    """The very element that FA2 gave on an H200 (head 55, column 18), 5% over a bound of 2^-7 of the row's RMS."""
    cache, q = paged(LENGTHS, E4M3, device="cpu"), queries(len(LENGTHS), torch.bfloat16, device="cpu")
    expected = attention(q, cache, None)[0][3]
    k, v = (x.repeat_interleave(QUERY_HEADS // x.shape[1], 1) for x in tokens(cache, 3))
    output = rounded_as_fa2_does(q[3], k, v, split=128)
    assert f"{output[55, 18]:.6g} {expected[55, 18]:.6g}" == "-0.0128174 -0.0132354"
    assert faults(output[None], expected[None]) == []
    row = expected[55]
    error, size = abs(output[55, 18] - row[18]), abs(row[18]) + row.square().mean().sqrt()
    assert 2**-7 * size < error < 1.1 * 2**-7 * size
