"""The grids of served shapes: counts, limits, drawn lengths, and the inputs that share one large cache."""

import itertools

import pytest
import torch

from bench.kernels import exact, grid, peers
from bench.kernels.grid import BASE, INT8, INT8_STATIC, KV_FORMATS, QUANTISED, WINDOW_LEFT, Point
from bench.kernels.peers import OURS
from kernels_tests.lowp import dense
from lowp.paged import inputs
from lowp.paged.shapes import Shape, drawn, even

SERVER, RANDOM = grid.points(["server"]), grid.points(["random"])
PAGES = 80


def test_the_server_grid_is_every_combination_that_fits():
    pairs = [pair for pair in itertools.product(grid.BATCHES, grid.CONTEXTS) if pair[0] * pair[1] * 2048 < 16e9]
    shapes = [point.shape for point in SERVER]
    assert {(shape.batch, shape.context) for shape in shapes} == set(pairs)
    lone = sum(batch == 1 for batch, _ in pairs)
    assert len(shapes) == len(set(shapes)) == 2 * (3 * len(pairs) - 2 * lone) == 660
    assert {(shape.table_tokens, shape.layout, shape.head_dim) for shape in shapes} == {(131072, "interleaved", 64)}
    assert {shape.window_left for shape in shapes} == {-1, WINDOW_LEFT}


def test_peers_are_at_equal_and_uniform_lengths_of_every_second_batch_without_window():
    shapes = [point.shape for point in SERVER if point.peers]
    assert {shape.batch for shape in shapes} == set(grid.BATCHES[::2])
    assert {shape.context for shape in shapes} == set(grid.CONTEXTS)
    assert {shape.spread for shape in shapes} == {"", "uniform"} and {shape.window_left for shape in shapes} == {-1}


def test_random_shapes_are_the_same_every_time_and_cover_the_range():
    shapes = [point.shape for point in RANDOM]
    assert len(shapes) == len(set(shapes)) == 200 and sum(point.peers for point in RANDOM) == 100
    assert all(point.peers == (point.shape.window_left < 0) for point in RANDOM)
    assert str(shapes[0]) == "2x60w127t131072interleaved"
    for values, least, most in (
        ([shape.batch for shape in shapes], 1, 256),
        ([shape.context for shape in shapes], 17, 131072),
    ):
        assert least <= min(values) <= 2 * least and most / 2 <= max(values) <= most
        middle = (least * most) ** 0.5
        assert 60 < sum(value > middle for value in values) < 140, "log-uniform"
    assert {shape.spread for shape in shapes} == {"", "near", "uniform"}


def test_served_shapes_fit_and_have_their_name():
    for point in [*SERVER, *RANDOM]:
        shape = point.shape
        assert shape.context == max(shape.lengths) <= 131072
        assert shape.pages <= grid.MAX_CACHE_PAGES and shape.pages * 16 * 2048 <= 16e9
        assert grid.kv_bytes(shape, BASE) <= shape.pages * 16 * 2048
        assert 4 <= grid.served_calls(shape) <= 96
        assert grid.parse(str(shape), [point.grid]) == point


def test_parts_are_the_whole_and_each_covers_the_range():
    parts = [grid.points(["server", "random"], number, 3) for number in (1, 2, 3)]
    assert sorted(itertools.chain(*parts)) == sorted([*SERVER, *RANDOM])
    for part in parts:
        for name in ("batch", "context", "spread", "window_left"):
            assert {getattr(point.shape, name) for point in part if point.grid == "server"} == {
                getattr(point.shape, name) for point in SERVER
            }
        tokens = sum(point.shape.tokens for point in part)
        assert tokens == pytest.approx(sum(point.shape.tokens for point in [*SERVER, *RANDOM]) / 3, rel=0.5)


def test_lengths_are_drawn_within_their_spread():
    near, uniform = drawn(64, 8192, "near"), drawn(64, 8192, "uniform")
    assert 8192 - 63 <= min(near.lengths) < 8192 - 50 and max(near.lengths) == 8192
    assert 4096 <= min(uniform.lengths) < 4500 and max(uniform.lengths) == 8192
    assert sum(uniform.lengths) / 64 == pytest.approx(6144, rel=0.1)
    assert drawn(64, 8192, "near") == near and drawn(63, 8192, "near").lengths[:5] != near.lengths[:5]
    assert min(drawn(64, 17, "near").lengths) >= 1 and min(drawn(64, 17, "uniform").lengths) >= 9
    assert near != Shape(near.lengths) and str(near) == "64x8192near"


def test_a_window_reads_its_tokens_alone():
    shape = grid.served(2, 512, "near", WINDOW_LEFT)
    assert grid.kv_bytes(shape, QUANTISED) == 2 * 128 * 1024 and shape.pages <= 2 * 9


@pytest.mark.parametrize("kernel", peers.KERNELS, ids=str)
def test_kernels_of_served_shapes(kernel):
    shape = grid.served(2, 512, "")
    with_peers, ours_alone = (kernel.skip_reason(Point("server", shape, peers=flag)) is None for flag in (True, False))
    assert ours_alone == (kernel.name == OURS and kernel.kv_format != INT8_STATIC)
    assert with_peers == (kernel.name in (OURS, "fa2-sinks", "xqa-sinks", "vllm-fa3"))
    assert (kernel.skip_reason(Point("random", shape, peers=False)) is None) == (kernel.name == OURS)


@pytest.fixture(scope="module")
def caches() -> dict:
    return {kv_format: inputs.large_cache(PAGES, kv_format, "cpu") for kv_format in KV_FORMATS}


@pytest.mark.parametrize("kv_format", KV_FORMATS)
@pytest.mark.parametrize("window_left", [-1, WINDOW_LEFT])
def test_inputs_of_a_large_cache_are_attention_over_a_wide_table(caches, kv_format, window_left):
    shape = grid.served(3, 200, "uniform", window_left)
    data = inputs.from_cache(shape, 4, caches)
    assert data.block_table.shape == (3, 8192)
    for row, (start, end) in enumerate(shape.page_spans):
        assert not data.block_table[row, :start].any() and not data.block_table[row, end:].any()
    used = torch.cat([data.block_table[row, start:end] for row, (start, end) in enumerate(shape.page_spans)])
    assert sorted(used.tolist()) == list(range(shape.pages))
    for layer in (0, 3):
        k, v = data.caches[kv_format][layer]
        options = {"sm_scale": data.sm_scale, "window_left": window_left, "layout": "HND"}
        options |= data.layer_scales(kv_format, layer)
        judged, _ = dense.attention(data.q[layer], k, v, data.block_table, data.seq_lens, data.sinks, **options)
        for row in range(3):
            output = exact.attention(data, kv_format, layer, row, sinks=True)
            torch.testing.assert_close(output, judged[row], rtol=1e-9, atol=1e-12)


def test_layers_are_interleaved_parts_of_the_cache_and_distinct_as_far_as_it_suffices(caches):
    shape = grid.served(2, 160, "")
    data = inputs.from_cache(shape, 6, caches)
    (base,) = caches[BASE].tensors
    starts = [k.data_ptr() - base.data_ptr() for k, _ in data.caches[BASE]]
    page_bytes = 8 * 16 * 128 * 2
    assert starts == [layer % 4 * 20 * page_bytes for layer in range(6)], "80 pages hold 4 layers of 20"
    for k, v in data.caches[BASE]:
        assert k.shape == v.shape == (20, 8, 16, 64) and k.stride() == v.stride() == (8 * 16 * 128, 16 * 128, 128, 1)
        assert v.data_ptr() - k.data_ptr() == 64 * 2
    assert len({q.data_ptr() for q in data.q}) == len({out.data_ptr() for out in data.out}) == 6


def test_pages_in_int8_hold_their_scales(caches):
    """As the plugin has them on a GPU: lines of K and V, then the scales of K, then those of V."""
    data = inputs.from_cache(grid.served(2, 160, ""), 2, caches)
    (k, v), (k_scale, v_scale) = data.caches[INT8][1], data.scales[INT8][1]
    page, scales = 8 * 16 * 136, (20, 8, 16)
    assert k.shape == v.shape == (*scales, 64) and k_scale.shape == v_scale.shape == scales
    assert k.stride() == v.stride() == (page, 16 * 128, 128, 1) and k_scale.stride() == (page // 4, 16, 1)
    start = caches[INT8].tensors[0].data_ptr() + 20 * page
    addresses = [x.data_ptr() - start for x in (k, v, k_scale, v_scale)]
    assert addresses == [0, 64, 8 * 16 * 128, 8 * 16 * 128 + 8 * 16 * 4]
    assert [x.shape for x in data.scales[INT8_STATIC][1]] == [(8, 64), (8,)]


@pytest.mark.parametrize("kv_format", [QUANTISED, INT8_STATIC])
def test_parts_of_a_large_cache_in_another_layout_are_k_and_v_in_halves(caches, kv_format):
    data = inputs.from_cache(grid.served(2, 160, "")._replace(layout="HND"), 2, {kv_format: caches[kv_format]})
    k, v = data.caches[kv_format][1]
    assert k.shape == (20, 8, 16, 64) and k.is_contiguous() and v.is_contiguous()
    assert v.data_ptr() - k.data_ptr() == k.numel()


@pytest.mark.parametrize("kv_format", [QUANTISED, INT8])
def test_a_large_cache_repeats_drawn_pages(monkeypatch, kv_format):
    monkeypatch.setattr(inputs, "REPEATED_PAGES", 3)
    cache, second_cache = (inputs.large_cache(8, kv_format, "cpu").tensors[0].view(torch.uint8) for _ in range(2))
    assert torch.equal(cache[:3], cache[3:6]) and torch.equal(cache[:2], cache[6:])
    assert not torch.equal(cache[0], cache[1])
    assert torch.equal(cache, second_cache)


def test_the_shared_cache_is_as_large_as_the_calls_need():
    assert grid.cache_pages(SERVER) == grid.MAX_CACHE_PAGES
    assert grid.cache_pages([Point("standard", even(2, 512))]) == 0
    assert grid.cache_pages([Point("server", grid.served(2, 160, ""))]) == 20 * 96
