"""Arguments that the decode API refuses, and unusual ones that it takes; on a CPU, where the reference computes."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch

from kernels_tests.lowp.cache_mistakes import CACHE_MISTAKES
from kernels_tests.lowp.memory import replaced, strided
from lowp.paged import tight
from lowp.paged.cases import POISON_PAGE, Case, build
from lowp.paged.reference import reference
from lowp.sink_decode import sink_decode

REPO = Path(__file__).resolve().parents[2]
SMALL = Case(lengths=(1, 0, 17, 40, 33), query_heads=8, kv_heads=2, granularity="head")


MISTAKES = CACHE_MISTAKES | {
    "fp32 query": (lambda a: {"q": a["q"].float()}, TypeError, "q has dtype torch.float32; expected torch.bfloat16"),
    "query rank": (lambda a: {"q": a["q"][0]}, ValueError, r"q has shape \(8, 64\)"),
    "head_dim": (lambda a: {"q": a["q"][..., :32]}, NotImplementedError, "head_dim is 32; this kernel has 64, 128"),
    "query strides": (lambda a: {"q": strided(a["q"])}, ValueError, "q has strides"),
    "sinks dtype": (lambda a: {"sinks": a["sinks"].half()}, TypeError, "sinks has dtype torch.float16"),
    "sinks shape": (lambda a: {"sinks": a["sinks"][:4]}, ValueError, r"sinks has shape \(4,\); expected \(8,\)"),
    "no KV heads": (
        lambda a: {"k_cache": a["k_cache"][:, :0], "v_cache": a["v_cache"][:, :0]},
        NotImplementedError,
        "8 query heads over 0 KV heads",
    ),
    "small pages": (lambda a: {"layout": "NHD"}, NotImplementedError, "page size is 2"),
    "table dtype": (lambda a: {"block_table": a["block_table"].long()}, TypeError, "block_table has dtype"),
    "table rows": (lambda a: {"block_table": a["block_table"][1:]}, ValueError, "block_table has shape"),
    "table strides": (lambda a: {"block_table": strided(a["block_table"])}, ValueError, "contiguous rows"),
    "lengths": (lambda a: {"seq_lens": a["seq_lens"][1:]}, ValueError, "seq_lens has shape"),
    "one per token": (lambda a: {"k_scale": torch.ones(a["k_cache"].shape[:3])}, NotImplementedError, "of K: token"),
    "per channel": (
        lambda a: {"k_scale": torch.ones(2, 64)},
        NotImplementedError,
        "each channel of a cache in e4m3",
    ),
    "sm_scale": (lambda a: {"sm_scale": math.nan}, ValueError, "sm_scale is nan"),
    "window type": (lambda a: {"window_left": math.nan}, TypeError, "window_left is nan; expected an int"),
    "window float": (lambda a: {"window_left": 127.0}, TypeError, r"window_left is 127\.0; expected an int"),
    "negative entry": (
        lambda a: {"block_table": replaced(a["block_table"], (3, 1), -1)},
        ValueError,
        r"block_table\[3, 1\] is -1, of a page in use",
    ),
    "entry past the cache": (
        lambda a: {"block_table": replaced(a["block_table"], (2, 0), len(a["k_cache"]))},
        ValueError,
        r"block_table\[2, 0\] is .* expected 0 to",
    ),
    "length past the table": (lambda a: {"seq_lens": a["seq_lens"] + 16}, ValueError, "seq_lens has 56 tokens"),
    "window": (lambda a: {"window_left": -2}, ValueError, "window_left is -2"),
    "out shape": (lambda a: {"out": a["q"][:2]}, ValueError, "out has shape"),
    "lse dtype": (lambda a: {"lse": a["q"][..., 0]}, TypeError, "lse has dtype"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_raise(mistake):
    change, error, words = MISTAKES[mistake]
    arguments = build(SMALL)
    with pytest.raises(error, match=words):
        sink_decode(**arguments | change(arguments))


def test_combinations_that_are_not_built_raise():
    arguments = build(dataclasses.replace(SMALL, kv_format="int8"))
    with pytest.raises(NotImplementedError, match="v_scale has a scale for each channel of a cache in int8"):
        sink_decode(**arguments | {"v_scale": torch.ones(2, 64)})
    with pytest.raises(NotImplementedError, match="K: head, of V: token_head"):
        sink_decode(**arguments | {"v_scale": torch.ones(arguments["v_cache"].shape[:3])})
    with pytest.raises(ValueError, match="an int8 cache without k_scale or v_scale"):
        sink_decode(**arguments | {"v_scale": None})
    too_large = [
        (4, 16, 64, "64; this kernel has up to 48"),
        (3, 16, 128, "48; this kernel has up to 32"),
        (5, 1, 64, "1 to 4"),
    ]
    for tokens, group, head_dim, words in too_large:
        arguments = build(Case((9,), group, 1, head_dim, query_tokens=tokens))
        with pytest.raises(NotImplementedError, match=words):
            sink_decode(**arguments)
    arguments = build(dataclasses.replace(SMALL, query_heads=34))
    with pytest.raises(NotImplementedError, match="34 query heads over 2 KV heads"):
        sink_decode(**arguments)


@pytest.mark.parametrize("page", [-1, POISON_PAGE])
@pytest.mark.parametrize(("window_left", "left_out"), [(-1, 0), (15, 1), (16, 0), (2**40, 0)])
def test_entries_that_are_not_read_may_be_anything(page, window_left, left_out):
    """Behind the end of a sequence, and pages that its window leaves out whole: here those of the first 16 tokens."""
    case = dataclasses.replace(SMALL, lengths=(32, 1), table_tokens=64, window_left=window_left)
    arguments = build(case)
    exact = sink_decode(**arguments)
    for row, columns in ((0, (*range(left_out), 2, 3)), (1, (1, 2, 3))):
        for column in columns:
            arguments |= {"block_table": replaced(arguments["block_table"], (row, column), page)}
    assert torch.equal(sink_decode(**arguments), exact) and exact.isfinite().all()
    with pytest.raises(ValueError, match="of a page in use"):
        sink_decode(**arguments | {"block_table": replaced(arguments["block_table"], (0, left_out), page)})


@pytest.mark.parametrize("query_tokens", [1, 3])
@pytest.mark.parametrize("sink", [math.nan, math.inf])
def test_a_sink_without_a_value_makes_its_head_nan(sink, query_tokens):
    """As softmax does; also where a sequence is empty. The other heads do not see it."""
    arguments = build(dataclasses.replace(SMALL, query_tokens=query_tokens))
    arguments["sinks"][5] = sink
    lse = torch.empty(arguments["q"].shape[:-1])
    out = sink_decode(**arguments, lse=lse)
    assert out[..., 5, :].isnan().all() and lse[..., 5].isnan().all()
    unaffected = [head for head in range(8) if head != 5]
    exact, exact_lse = reference(**arguments | {"sinks": arguments["sinks"].nan_to_num(posinf=0.0)})
    assert tight.problems(out[..., unaffected, :], exact[..., unaffected, :]) == []
    assert torch.allclose(lse[..., unaffected].double(), exact_lse[..., unaffected])


@pytest.mark.parametrize("query_tokens", [1, 2])
def test_a_batch_of_none(query_tokens):
    arguments = build(dataclasses.replace(SMALL, query_tokens=query_tokens))
    none = {name: arguments[name][:0] for name in ("q", "block_table", "seq_lens")}
    lse = torch.empty(arguments["q"].shape[:-1])[:0]
    assert sink_decode(**arguments | none, lse=lse).shape == arguments["q"][:0].shape


def test_the_readmes_example_runs():
    """On a CPU, where the reference computes."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (REPO / "README.md").read_text(), re.M | re.S)
    names = {}
    exec(code.replace('"cuda"', '"cpu"'), names)
    assert names["out"].shape == (4, 64, 64) and names["out"].isfinite().all()
