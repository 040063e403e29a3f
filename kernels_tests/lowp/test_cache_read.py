"""Read out of the paged cache, on a CPU and on a GPU, against an expectation of every byte."""

import dataclasses

import pytest
import torch

from kernels_tests.lowp.cache_reads import cases, problems
from lowp.cache_read import cache_read
from lowp.cache_read.cases import Case, build
from lowp.formats import dequantize
from lowp.jit.launcher import captured
from lowp.paged.cases import POISON_PAGE
from lowp.paged.layouts import as_bits
from lowp.paged.memory import LAYOUTS, canonical, moved

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
on_each_device = pytest.mark.parametrize("device", DEVICES)
WINDOWS = Case((200, 127, 128, 1, 55), starts=(73, 0, 1, 0, 40), granularity="head")


def check(arguments, **options):
    """Read, and compare all memory with what it had to become."""
    before = moved(arguments, "cpu")
    cache_read(**arguments, **options)
    assert problems(before, arguments) == []


@on_each_device
@pytest.mark.parametrize("case", list(cases()), ids=lambda case: "-".join(map(str, dataclasses.astuple(case))))
def test_every_byte(case, device):
    check(build(case, device))


@on_each_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kv_format", ["e4m3", "bf16"])
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 31, 127, 128])
def test_lengths_around_a_page(length, kv_format, layout, device):
    check(build(Case((length,), kv_format=kv_format, layout=layout), device))
    check(build(Case((length, 3, length), kv_format=kv_format, layout=layout), device))


@on_each_device
@pytest.mark.parametrize("first", [0, 1, 15, 16, 17, 31, 40])
def test_windows_from_inside_a_page(first, device):
    check(build(Case((40, 57), starts=(first, 17), granularity="token_head", v_granularity="head"), device))


@on_each_device
def test_many_sequences(device):
    """More than there are threads in a warp, of unequal lengths, some empty, on shared pages."""
    lengths = tuple(7 * i % 50 for i in range(1, 70))
    check(build(Case(lengths, shared=1, room=2, kv_heads=1), device))
    check(build(dataclasses.replace(WINDOWS, ends=WINDOWS.ends * 20, starts=WINDOWS.starts * 20), device))


@on_each_device
def test_no_sequences_and_no_rows(device):
    arguments = build(Case(), device)
    check(
        arguments
        | {name: arguments[name][:0] for name in ("block_table", "ends")}
        | {"cu_out": arguments["cu_out"][:1]}
    )
    check(build(Case((0, 0), room=0), device))


@on_each_device
def test_rows_before_the_first_are_left_alone(device):
    """The rows before cu_out[0] are another's."""
    arguments = build(WINDOWS, device)
    arguments["cu_out"] += 3
    check(arguments)


@on_each_device
@pytest.mark.parametrize("kv_format", ["e4m3", "int8"])
@pytest.mark.parametrize("out", ["bf16", "fp16"])
def test_values_are_those_of_dequantize(kv_format, out, device):
    """All 256 values with 2048 scales, of which some overflow FP16."""
    case = Case((256,), page_size=256, kv_heads=8, head_dim=256, kv_format=kv_format, out=out, granularity="token_head")
    arguments = build(dataclasses.replace(case, layout="NHD"), device)
    codes = torch.arange(256, device=device)
    page = int(arguments["block_table"][0, 0])
    for name, turned in (("k", codes), ("v", codes.flip(0))):
        as_bits(arguments[f"{name}_cache"]).copy_(turned)
        arguments[f"{name}_scale"].copy_(torch.exp2(torch.linspace(-20, 10, 256 * 8, device=device)).view(256, 8))
    cache_read(**arguments)
    for name in ("k", "v"):
        result, scale = arguments[f"{name}_out"][:256], arguments[f"{name}_scale"][page]
        exact = dequantize(arguments[f"{name}_cache"][page], scale[..., None]).to(result.dtype)
        assert torch.equal(canonical(result), canonical(exact))


MUTANTS = {
    "none": lambda a: {},
    "scales of the neighbour": lambda a: {"v_scale": a["v_scale"].roll(1)},
    "wrong scale": lambda a: {"k_scale": a["k_scale"] * 1.01},
    "K and V swapped": lambda a: {"k_out": a["v_out"], "v_out": a["k_out"]},
    "caches swapped": lambda a: {"k_cache": a["v_cache"], "v_cache": a["k_cache"]},
    "page of the neighbour": lambda a: {"block_table": (a["block_table"] + 1) % len(a["k_cache"])},
    "table of the neighbour": lambda a: {"block_table": a["block_table"].roll(1, 0).clamp(max=len(a["k_cache"]) - 1)},
    "token too early": lambda a: {"starts": (a["starts"] - 1).clamp(min=0), "ends": (a["ends"] - 1).clamp(min=0)},
    "token missing": lambda a: {"ends": (a["ends"] - 1).clamp(min=0)},
    "row too late": lambda a: {"cu_out": a["cu_out"] + 1},
    "room is written": lambda a: {"ends": a["ends"] + 1, "block_table": a["block_table"].clamp(max=0)},
    "heads swapped": lambda a: {"v_cache": a["v_cache"].flip(2 if a["layout"] == "NHD" else 1)},
}


@on_each_device
@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("granularity", ["head", "token_head"])
@pytest.mark.parametrize("layout", ["NHD", "interleaved"])
def test_mutants_are_noticed(mutant, granularity, layout, device):
    case = dataclasses.replace(WINDOWS, granularity=granularity, layout=layout, room=1)
    arguments = build(case, device)
    before = moved(arguments, "cpu")
    changed = arguments | MUTANTS[mutant](arguments)
    if "heads" in mutant:  # a flip is a copy, whose strides are not K's
        changed["k_cache"] = changed["k_cache"].clone(memory_format=torch.contiguous_format)
    cache_read(**changed)
    assert bool(problems(before, arguments)) == (mutant != "none")


# ---- on a GPU alone


@pytest.mark.gpu
def test_entries_out_of_range_touch_no_other_memory():
    """Rows of a page out of range are NaN; lengths past the table and rows past the output's are cut off."""
    arguments = build(Case((64, 32), kv_heads=8, room=16), "cuda")
    for entry in (POISON_PAGE, -1, len(arguments["k_cache"])):
        arguments["block_table"][0, 2] = entry
        cache_read(**arguments)
        for name in ("k", "v"):
            out = arguments[f"{name}_out"]
            assert out[32:48].isnan().all()
            out[32:48] = 0
        arguments["block_table"][0, 2] = 0
        cache_read(**arguments)
    arguments["ends"].copy_(torch.tensor([2**31 - 1, -5]))
    arguments["cu_out"].copy_(torch.tensor([0, 2**30, 2**31 - 1]))
    arguments["block_table"].clamp_(max=0)
    before = moved(arguments, "cpu")
    cache_read(**arguments)
    tokens = min(arguments["block_table"].shape[1] * 16, len(arguments["k_out"]))
    before["ends"].copy_(torch.tensor([tokens, 0]))
    arguments["ends"].copy_(before["ends"])
    assert problems(before, arguments) == []


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("granularity", ["head", "token_head"])
def test_a_graph_sees_other_lengths_tables_and_scales(overlap, granularity):
    case = dataclasses.replace(WINDOWS, granularity=granularity, layout="interleaved")
    arguments = build(case, "cuda")
    graph = captured(lambda: cache_read(**arguments, overlap=overlap))
    for starts, ends in (((70, 1, 0, 0, 40), (197, 128, 127, 1, 55)), ((3, 0, 9, 0, 40), (3, 0, 19, 0, 41))):
        changed = build(dataclasses.replace(case, starts=starts, ends=ends, seed=1), "cuda")
        for name in ("starts", "ends", "cu_out", "k_scale", "v_scale", "k_cache", "v_cache"):
            if changed[name].shape == arguments[name].shape:
                arguments[name].copy_(changed[name])
        arguments["block_table"].copy_(torch.randint(0, len(arguments["k_cache"]), arguments["block_table"].shape))
        before = moved(arguments, "cpu")
        graph.replay()
        torch.cuda.synchronize()
        assert problems(before, arguments) == []


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [False, True])
def test_a_kernel_waits_for_the_previous_kernel(overlap):
    """A chain of reads, each of what the one before it read: 200 rounds through two caches."""
    table = torch.arange(4, dtype=torch.int32, device="cuda")[None]
    ends, cu_out = (torch.tensor(x, dtype=torch.int32, device="cuda") for x in ([64], [0, 64]))
    first, second = (torch.zeros(2, 4, 16, 8, 64, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    values = torch.randn(2, 64, 8, 64, device="cuda").bfloat16()
    first.view(2, 64, 8, 64).copy_(values)
    for source, target in ((first, second), (second, first)) * 100:
        v_out, k_out = target.view(2, 64, 8, 64)
        cache_read(*source, table, ends, cu_out, k_out, v_out, layout="NHD", overlap=overlap)
    assert torch.equal(first.view(2, 64, 8, 64), values)


@pytest.mark.gpu
def test_far_pages_and_unequal_lengths():
    """A long and many short sequences in pages whose last byte is over 4 GiB away, into more rows than are needed."""
    pages = 2**32 // (16 * 8 * 128) + 4096
    cache = torch.zeros(pages, 8, 16, 128, device="cuda", dtype=torch.uint8)
    cache[-4096:] = torch.randint(0, 127, cache[-4096:].shape, device="cuda", dtype=torch.uint8)
    lengths = [40_000, *([100] * 200)]
    counts = [-(-n // 16) for n in lengths]
    order = (torch.randperm(4096, device="cuda")[: sum(counts)] + pages - 4096).int()
    table = torch.full((len(lengths), max(counts)), POISON_PAGE, dtype=torch.int32, device="cuda")
    for row, part in zip(table, order.split(counts), strict=True):
        row[: len(part)] = part
    ends = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    cu_out = torch.cat((torch.zeros_like(ends[:1]), ends.cumsum(0, dtype=torch.int32)))
    k_out, v_out = torch.full((2, 100_000, 8, 64), 7.0, dtype=torch.bfloat16, device="cuda")
    stored = cache.view(torch.float8_e4m3fn)
    cache_read(stored[..., :64], stored[..., 64:], table, ends, cu_out, k_out, v_out, layout="HND")
    parts = zip(order.split(counts), lengths, strict=True)
    tokens = [cache[part.long()].transpose(1, 2).reshape(-1, 8, 128)[:n] for part, n in parts]
    values = torch.cat(tokens).view(torch.float8_e4m3fn).float().bfloat16()
    assert torch.equal(torch.cat((k_out, v_out), dim=-1)[: len(values)], values)
    assert (k_out[len(values) :] == 7).all() and (v_out[len(values) :] == 7).all()
