"""The shapes of a sweep over launches, from its command line; no GPU needed."""

from collections import Counter
from dataclasses import astuple, replace

import pytest

from bench.kernels import grid
from lowp.paged.inputs import large_cache
from lowp.paged.shapes import CACHES
from lowp.sink_decode import cost, fit, heuristic, sweep
from lowp.sink_decode.checks import check_arguments, check_entries
from lowp.sink_decode.fit import H200
from lowp.sink_decode.heuristic import candidates, work_of
from lowp.sink_decode.launch import variant_of
from lowp.sink_decode.resources import Launch
from lowp.sink_decode.sweep import parse
from lowp.sink_decode.sweep_shapes import BATCHES, LONG_ROWS, MEANS, MOST_TOKENS, WIDE, key

REQUIRED = ["--seconds", "60", "--ceiling", "4.5e12", "--out", "sweep.json"]


def shapes(*options):
    return parse([*REQUIRED, *options]).shapes


def test_all_shapes():
    todo = shapes()
    assert {shape.batch for shape in todo if shape.kind != "one"} == {*BATCHES}
    assert {shape.tokens for shape in todo if shape.kind != "one"} == {*MEANS}
    assert {(shape.batch, shape.tokens) for shape in todo if shape.kind == "one"} == {*LONG_ROWS}
    assert len(todo) == len(set(todo))
    for shape in todo:
        assert max(shape.lengths) <= shape.tokens <= shape.table_tokens
        assert sum(shape.lengths) <= 2 * MOST_TOKENS  # the caches that a sweep allocates


def test_given_batches_and_tokens_are_paired():
    todo = shapes("--batches", "64", "128", "512", "--tokens", "256", "1024", "--tables", "wide")
    pairs = {(batch, tokens) for batch in (64, 128, 512) for tokens in (256, 1024)}
    for kind in ("near", "uniform", "one"):
        assert {(shape.batch, shape.tokens) for shape in todo if shape.kind == kind} == pairs
    assert {shape.kv_format for shape in todo} == {"e4m3", "bf16"}
    assert all((shape.table_tokens, shape.layout, shape.window_left) == (WIDE, "interleaved", -1) for shape in todo)


def test_given_batches_keep_the_tokens():
    todo = shapes("--batches", "3", "--kinds", "near", "--tables", "wide")
    assert [(shape.batch, shape.tokens) for shape in todo if shape.kv_format == "bf16"] == [(3, n) for n in MEANS]


def test_kinds_and_tables_are_chosen():
    windowed = shapes("--tables", "window")
    assert {(shape.kind, shape.window_left, shape.batch) for shape in windowed} == {("near", 127, b) for b in BATCHES}
    narrow = shapes("--kinds", "one", "--tables", "narrow", "--tokens", "4096", "--batches", "1", "5")
    assert [(shape.batch, shape.lengths) for shape in narrow[-2:]] == [(1, [4096]), (5, [4096, 512, 512, 512, 512])]
    assert all(shape.table_tokens == 4096 for shape in narrow)


@pytest.mark.parametrize(
    "options",
    [
        ("--kinds", "far"),
        ("--tables", "broad"),
        ("--batches", "64,128"),
        ("--tokens",),
        ("--tokens", str(2 * WIDE)),
        ("--kinds", "uniform", "--tables", "window"),
    ],
)
def test_options_without_shapes_are_refused(options):
    with pytest.raises(SystemExit) as exit_code:
        shapes(*options)
    assert exit_code.value.code == 2


@pytest.mark.parametrize("kv_format", CACHES)
@pytest.mark.parametrize(
    "options", [("--tables", "wide", "narrow"), ("--tables", "window", "--kinds", "near")], ids=str
)
def test_calls_are_those_of_the_shape(monkeypatch, kv_format, options):
    """What is compiled and chosen for a shape is what its calls need; each call has a part of the cache."""
    monkeypatch.setattr(sweep, "MOST_CALLS", 3)
    bench = object.__new__(sweep.Bench)
    bench.ceiling, bench.workspace = 4.5e12, None
    bench.caches = {kv_format: large_cache(600, kv_format, "cpu")}
    for shape in shapes("--kv-formats", kv_format, "--batches", "2", "--tokens", "2048", *options):
        first, second, _ = bench.calls(shape)
        for call in (first, second):
            check_arguments(replace(call, out=call.out.clone()))
            check_entries(call)
            assert variant_of(call) == shape.variant
            assert call.seq_lens.tolist() == shape.lengths and call.table_width == shape.table_tokens // 16
        assert first.k_cache.data_ptr() != second.k_cache.data_ptr() and first.out.data_ptr() != second.out.data_ptr()
        assert shape.kv_bytes == grid.kv_bytes(shape.sizes, kv_format)
        assert (first.k_scale is None) == (kv_format in ("e4m3", "bf16"))


def test_the_constant_of_token_scales_makes_their_steps_longer():
    launch, lengths = Launch(8, 2, 2, 2, 8), ((1, 2048),)
    (shape,) = (shape for shape in cost.SHAPES if shape[:3] == (8, 2, 1))
    works = [work_of(shapes("--kv-formats", name, "--batches", "1")[0].variant, 1, 8, H200) for name in CACHES]
    slower = cost.COSTS._replace(token_scales=1.5)
    times = [[cost.call_us(work, shape, launch, lengths, costs) for work in works] for costs in (slower, cost.COSTS)]
    longer = [slow > us for slow, us in zip(*times, strict=True)]
    assert longer == [name == "int8" for name in CACHES]


def test_a_fit_of_a_constant_alone_finds_it(monkeypatch):
    """From times that the estimate gives with another constant: it comes out, the others stay."""
    swept = shapes("--kv-formats", "int8", "--batches", "1", "4", "--tokens", "32768", "--tables", "wide")
    constants, truth = cost.COSTS, cost.COSTS._replace(token_scales=1.6)
    rows = []
    for shape in swept:
        work = work_of(shape.variant, shape.batch, 8, H200)
        lengths = tuple((n, tiles) for tiles, n in Counter(shape.tiles).items())
        fitting = candidates(shape.variant, shape.batch, 8, shape.bound, H200)
        times = {key(launch): cost.call_us(work, cta, launch, lengths, truth) for launch, cta in fitting.items()}
        rows.append({"shape": astuple(shape), "times": times})
    monkeypatch.setattr(cost, "COSTS", constants)
    for name in ("SHAPES", "PLANNED"):
        monkeypatch.setattr(cost, name, getattr(cost, name))
        monkeypatch.setattr(heuristic, name, getattr(heuristic, name))
    fit.fit_constants(fit.samples(rows), 8, [cost.Costs._fields.index("token_scales")])
    fitted = cost.COSTS
    assert fitted.token_scales == pytest.approx(1.6, rel=0.01)
    assert fitted._replace(token_scales=1.0) == pytest.approx(constants)
