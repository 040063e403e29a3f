"""Scales of an int8 cache: static ones per channel, and those that the call computes, on a CPU and on a GPU.

The kernel's own arithmetic runs on a CPU too, compiled by g++.
"""

import dataclasses
import math
import shutil

import pytest
import torch

from kernels_tests.lowp import host_kernel
from kernels_tests.lowp.cache_writes import cases, check, on_each_device, problems, write
from lowp.cache_read import cache_read
from lowp.cache_write.cases import SCALES_IN_PAGE, Case, build
from lowp.formats import FORMATS
from lowp.paged.layouts import in_nhd
from lowp.paged.memory import moved
from lowp.sink_decode import sink_decode

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++; none here")


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    return tmp_path_factory.mktemp("builds")


@pytest.fixture
def kernel_on_cpu(builds, monkeypatch):
    """Run the kernel instead of the reference."""
    host_kernel.replace_reference(builds, monkeypatch)


# Of a row of bf16, the scale and the first codes that it must get.
SUBNORMAL = 2.0**-133
EDGES = {
    "zeros": ([0.0, -0.0], 1.0, [0, 0]),
    "ties": ([127.0, 0.5, 1.5, -2.5, 126.5], 1.0, [127, 0, 2, -2, 126]),
    "NaN": ([math.nan, 127.0, -64.0], 1.0, [0, 127, -64]),
    "NaN alone": ([math.nan, 0.0], 1.0, [0, 0]),
    "infinities": ([math.inf, -math.inf, 254.0, 3.0], 2.0, [127, -127, 127, 2]),
    "infinities alone": ([math.inf, -math.inf, 0.0], 1.0, [127, -127, 0]),
    "largest": ([FORMATS["bf16"].largest, 0.0], FORMATS["bf16"].largest / 127, [127, 0]),
    "negative": ([-FORMATS["bf16"].largest, 0.0], FORMATS["bf16"].largest / 127, [-127, 0]),
    "subnormal": ([SUBNORMAL, -SUBNORMAL * 127], 2.0**-126, [0, -1]),
    "smallest scale": ([2.0**-120, 2.0**-126, 2.0**-127], 2.0**-126, [64, 1, 0]),
}


def check_edge(edge, device):
    """In one row of K; the other rows of the call are ones."""
    row, scale, codes = EDGES[edge]
    arguments = build(Case(kv_format="int8", granularity="token_head", skipped=0.0))
    for name in ("k", "v"):
        arguments[name].fill_(1.0)
    arguments["k"][7, 1] = 0.0
    arguments["k"][7, 1, -len(row) :] = torch.tensor(row)
    arguments = moved(arguments, device)
    counts = torch.zeros(2, dtype=torch.int64, device=device)
    check(arguments, saturated=counts)
    slot = int(arguments["slot_mapping"][7])
    page, slot = slot // 16, slot % 16
    assert arguments["k_scale"][page, 1, slot].item() == torch.tensor(scale).item()
    assert arguments["k_cache"][page, 1, slot, -len(row) :].tolist() == codes
    assert arguments["k_cache"][page, 0, slot].tolist() == [127] * 64
    assert counts.tolist() == [sum(map(math.isinf, row)), 0]


@on_each_device
@pytest.mark.parametrize("edge", EDGES)
def test_the_computed_scale_of_a_row(edge, device):
    check_edge(edge, device)


@needs_compiler
@pytest.mark.parametrize("edge", EDGES)
def test_the_kernels_scale_of_a_row(edge, kernel_on_cpu):
    check_edge(edge, "cpu")


def test_readers_take_the_computed_scales():
    """The same views, as `cache_read` and `sink_decode` take them: every value within half a step, and its rounding."""
    case = Case(48, 48, 0.0, 3, kv_heads=2, kv_format="int8", granularity="token_head", layout=SCALES_IN_PAGE)
    arguments = build(case)
    random = torch.Generator().manual_seed(1)
    for name in ("k", "v"):
        arguments[name].copy_(torch.randn(48, 2, 64, generator=random))
    arguments["slot_mapping"] = torch.arange(48)
    write(arguments)
    cache = {name: arguments[name] for name in ("k_cache", "v_cache", "k_scale", "v_scale", "layout")}
    table = {"block_table": torch.arange(3, dtype=torch.int32)[None]}
    outputs = {f"{name}_out": torch.empty(48, 2, 64, dtype=torch.bfloat16) for name in ("k", "v")}
    cu_out = torch.tensor([0, 48], dtype=torch.int32)
    cache_read(**cache, **table, ends=cu_out[1:], cu_out=cu_out, **outputs)
    for name in ("k", "v"):
        x = arguments[name].float()
        step = x.abs().amax(-1, keepdim=True) / 127
        assert ((outputs[f"{name}_out"].float() - x).abs() <= 0.51 * step + 2.0**-8 * x.abs()).all()
    call = table | {"seq_lens": cu_out[1:], "sinks": torch.zeros(8), "sm_scale": 0.125, "layout": "HND"}
    call["q"] = torch.randn(1, 8, 64, generator=random).bfloat16()
    pages = {f"{name}_cache": arguments[name].reshape(3, 16, 2, 64).transpose(1, 2).contiguous() for name in ("k", "v")}
    result, exact = sink_decode(**call | cache).float(), sink_decode(**call | pages).float()
    assert (result - exact).norm() < 0.02 * exact.norm()


def test_a_single_slot_gets_its_scale():
    """Scales of one element are computed where the cache has one slot and head."""
    arguments = build(Case(1, 1, 0.0, 1, 1, kv_heads=1, kv_format="int8", granularity="token_head", head_dim=16))
    arguments["k"].fill_(254.0)
    check(arguments)
    assert arguments["k_scale"].item() == 2.0


@on_each_device
def test_a_repeated_write_changes_nothing(device):
    """Scales that were written before are not read."""
    arguments = build(Case(kv_format="int8", granularity="token_head", layout=SCALES_IN_PAGE), device)
    write(arguments)
    check(arguments)
    arguments["k_scale"].fill_(math.nan)
    check(arguments)


HOST_CASES = [case for case in cases() if case.granularity in ("channel", "token_head")][::6]


@needs_compiler
@pytest.mark.parametrize("case", HOST_CASES, ids=lambda case: "-".join(map(str, dataclasses.astuple(case))))
def test_every_byte_of_the_kernel(case, kernel_on_cpu):
    check(build(case))


@needs_compiler
def test_quotients_of_the_kernel(kernel_on_cpu):
    """Rows of every 16th fp16 mantissa as the largest, with all values down to a 512th of it: codes 0 to 127."""
    rows = []
    for largest in range(0x4C00, 0x5000, 16):
        values = torch.arange(largest - 9 * 1024, largest, dtype=torch.int16)
        values = torch.cat((values, values[: -len(values) % 63])).view(-1, 63)
        rows.append(torch.nn.functional.pad(values, (1, 0), value=largest))
    k = torch.cat(rows).view(torch.float16).view(-1, 8, 64)
    case = Case(len(k), len(k), 0.0, 74, kv_heads=8, inputs="fp16", kv_format="int8", granularity="token_head")
    arguments = build(case)
    arguments["k"], arguments["v"] = k, -k
    check(arguments)


def neighbours_scales(arguments):
    """Write, and give each token the scale of the one before it in the call."""
    write(arguments)
    slots = arguments["slot_mapping"][arguments["slot_mapping"] >= 0]
    page, slot = slots // 16, slots % 16
    for name in ("k_scale", "v_scale"):
        scales = in_nhd(arguments[name], arguments["layout"])
        scales[page, slot] = scales[page, slot].roll(1, 0)


SCALE_MUTANTS = {
    "none": ("token_head", write),
    "scale of the neighbour token": ("token_head", neighbours_scales),
    "scale of the neighbour head": (
        "token_head",
        lambda a: write(a | {name: a[name].flip(a["layout"].index("H")) for name in ("k_scale", "v_scale")}),
    ),
    "K and V scales swapped": ("token_head", lambda a: write(a | {"k_scale": a["v_scale"], "v_scale": a["k_scale"]})),
    "scale per head for per channel": ("channel", lambda a: write(a | {"k_scale": a["k_scale"].amax(1)})),
    "channel of the neighbour": ("channel", lambda a: write(a | {"k_scale": a["k_scale"].roll(1, 1)})),
    "channels of the neighbour head": ("channel", lambda a: write(a | {"k_scale": a["k_scale"].roll(1, 0)})),
}


@pytest.mark.parametrize("mutant", SCALE_MUTANTS)
@pytest.mark.parametrize("layout", ["NHD", "interleaved", SCALES_IN_PAGE])
@pytest.mark.parametrize("rope", ["", "table"])
def test_mutants_of_int8_scales_are_noticed(mutant, layout, rope):
    granularity, mutate = SCALE_MUTANTS[mutant]
    if granularity == "channel" and layout == SCALES_IN_PAGE:
        layout = "HND"
    case = Case(kv_format="int8", granularity=granularity, v_granularity="head", layout=layout, rope=rope)
    case = dataclasses.replace(case, v_granularity=None) if granularity == "token_head" else case
    arguments = build(case)
    before = moved(arguments, "cpu")
    mutate(arguments)
    assert bool(problems(before, arguments)) == (mutant != "none")


@pytest.mark.gpu
@pytest.mark.parametrize("inputs", ["bf16", "fp16"])
@pytest.mark.parametrize("granularity", ["channel", "token_head"])
def test_int8_quotients_of_many_scales(inputs, granularity):
    """All inputs with scales over the whole range: as K per channel, or of rows of 64 with random largest values."""
    random = torch.Generator().manual_seed(0)
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(FORMATS[inputs].dtype)
    for seed in range(8):
        k = patterns[torch.randperm(2**16, generator=random)].view(128, 8, 64)
        arguments = build(
            Case(
                128,
                128,
                0.0,
                kv_heads=8,
                kv_format="int8",
                inputs=inputs,
                granularity=granularity,
                v_granularity="head" if granularity == "channel" else None,
                seed=seed,
            )
        )
        arguments["k"], arguments["v"] = k, k.flip(0).contiguous()
        if granularity == "channel":
            exponents = torch.randint(-125, 127, (8, 64), generator=random)
            arguments["k_scale"] = torch.ldexp(1 + torch.rand(8, 64, generator=random), exponents)
        check(moved(arguments, "cuda"))
