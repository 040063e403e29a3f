"""The shapes of a sweep over launches, from its command line; no GPU needed."""

import pytest

from lowp.sink_decode.sweep import parse
from lowp.sink_decode.sweep_shapes import BATCHES, LONG_ROWS, MEANS, MOST_TOKENS, WIDE

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
