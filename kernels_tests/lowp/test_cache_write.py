"""Writing into the paged cache, on a CPU and on a GPU, against an expectation of every byte."""

import dataclasses
import math

import pytest
import torch

from kernels_tests.lowp.cache_writes import cases, check, on_each_device, problems, saturated, write
from lowp.cache_write import cache_write, rope_cache_write
from lowp.cache_write.cases import SCALES_IN_PAGE, Case, build
from lowp.formats import FORMATS, quantize
from lowp.jit.launcher import captured
from lowp.paged.layouts import as_bits
from lowp.paged.memory import canonical, moved


@on_each_device
@pytest.mark.parametrize("case", list(cases()), ids=lambda case: "-".join(map(str, dataclasses.astuple(case))))
def test_every_byte(case, device):
    check(build(case, device))


HEAD_SCALES = [(1.0,), (0.37,), (1.0, 2.0**-9, 1.125, 7.0, 0.1, 1e-3, 448.0, 3.3)]
FORMATS_AND_SCALES = [
    *(("e4m3", scales) for scales in (None, *HEAD_SCALES)),
    *(("int8", scales) for scales in HEAD_SCALES),
    ("bf16", None),
    ("fp16", None),
]


@on_each_device
@pytest.mark.parametrize(("kv_format", "head_scales"), FORMATS_AND_SCALES)
@pytest.mark.parametrize("inputs", ["bf16", "fp16"])
def test_every_input_pattern(kv_format, inputs, head_scales, device):
    """All 65,536 values of 16 bits as K, and in reverse as V."""
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(FORMATS[inputs].dtype)
    arguments = build(Case(128, 128, 0.0, kv_heads=8, kv_format=kv_format, inputs=inputs, granularity="head"))
    arguments["k"], arguments["v"] = (
        patterns.view(128, 8, 64),
        as_bits(patterns).flip(0).view(patterns.dtype).view(128, 8, 64),
    )
    for name in ("k_scale", "v_scale"):
        arguments[name] = None if head_scales is None else torch.tensor(head_scales)
    check(moved(arguments, device))


@on_each_device
@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(kv_format="int8", granularity="head"),
        Case(kv_format="int8", granularity="channel", v_granularity="head"),
        Case(kv_format="int8", granularity="token_head"),
        Case(kv_format="fp16"),
    ],
)
@pytest.mark.parametrize("layout", ["HND", "interleaved"])
def test_saturated_values_are_counted(case, layout, device):
    arguments = build(dataclasses.replace(case, layout=layout), device)
    before = moved(arguments, "cpu")
    counts = torch.tensor([5, 7], device=device)
    write(arguments, saturated=counts)
    assert problems(before, arguments) == []
    assert counts.tolist() == [5 + saturated(before)[0], 7 + saturated(before)[1]] and min(saturated(before)) > 0


@on_each_device
def test_rotated_keys_are_counted(device):
    """An infinity stays one under rotation by zero."""
    arguments = build(Case(rope="table", skipped=0.0), device)
    arguments["k"].copy_(torch.where(torch.arange(64, device=device) == 3, math.inf, 0.5))
    arguments["cos_sin"].copy_(torch.arange(64, device=device) < 32)
    counts = torch.zeros(2, dtype=torch.int64, device=device)
    write(arguments, saturated=counts)
    # inf * 0 is NaN in the partner
    assert counts.tolist() == [37 * 2, saturated(arguments)[1]]


@on_each_device
def test_slots_and_rows_that_are_left_alone(device):
    check(build(Case(skipped=1.0), device))
    check(build(Case(slots=0), device))
    check(build(Case(tokens=50, slots=3, rope="table"), device))
    check(build(Case(skipped=1.0, rope="inputs", kv_format="bf16"), device))
    int8 = Case(kv_format="int8", granularity="token_head", layout=SCALES_IN_PAGE)
    check(build(dataclasses.replace(int8, skipped=1.0), device))
    check(build(dataclasses.replace(int8, tokens=50, slots=3, rope="table"), device))


@on_each_device
def test_the_queries_may_go_elsewhere(device):
    arguments = build(Case(rope="table", tokens=40), device)
    q_out = torch.full((40, 11, 64), 7.0, dtype=torch.bfloat16, device=device)
    arguments["q_out"] = q_out[:, 2:10]
    before = moved(arguments, "cpu")
    assert rope_cache_write(**arguments) is arguments["q_out"]
    assert problems(before, arguments) == []
    assert (q_out[:, :2] == 7).all() and (q_out[:, 10:] == 7).all()


def test_a_rotated_key_is_rounded_once():
    """Rounded to BF16 first and then to E4M3, some values differ."""
    case = Case(rope="table", tokens=140, slots=140, skipped=0.0, pages=20, kv_heads=8)
    direct, stepwise = build(case), build(case)
    write(direct)
    keys = stepwise["k"].clone()
    write(stepwise | {"q": keys})
    cache_names = ("v", "k_cache", "v_cache", "slot_mapping", "layout")
    cache_write(keys, **{name: stepwise[name] for name in cache_names})
    different = (as_bits(direct["k_cache"]) != as_bits(stepwise["k_cache"])).float().mean()
    assert 0 < different < 0.2


def changed_scale(a):
    return {"k_scale": a["k_scale"] * 1.5}


def shifted_slots(a):
    return {"slot_mapping": torch.where(a["slot_mapping"] > 0, a["slot_mapping"] - 1, a["slot_mapping"])}


def written_padding(a):
    return {"slot_mapping": torch.where(a["slot_mapping"] < 0, 0, a["slot_mapping"])}


MUTANTS = {
    "none": lambda a: {},
    "wrong scale": changed_scale,
    "scales of the neighbour": lambda a: {"v_scale": a["v_scale"].roll(1)},
    "slot of the neighbour": shifted_slots,
    "slot -1 is written": written_padding,
    "K and V swapped": lambda a: {"k": a["v"], "v": a["k"]},
    "caches swapped": lambda a: {"k_cache": a["v_cache"], "v_cache": a["k_cache"]},
    "heads swapped": lambda a: {"v": a["v"].flip(1)},
    "last token missing": lambda a: {"slot_mapping": a["slot_mapping"][:-1]},
    "smaller values": lambda a: {"v": (a["v"].float() * 0.97).to(a["v"].dtype)},
}
ROTATION_MUTANTS = {
    "position of the neighbour": lambda a: {"positions": a["positions"] + 1},
    "sine and cosine swapped": lambda a: {"cos_sin": a["cos_sin"].roll(32, dims=1)},
    "queries not rotated": lambda a: {"q_out": torch.empty_like(a["q"])},
}


@on_each_device
@pytest.mark.parametrize(
    ("mutant", "rope"),
    [*((m, "") for m in MUTANTS), *((m, "table") for m in MUTANTS | ROTATION_MUTANTS)],
)
@pytest.mark.parametrize("layout", ["NHD", "interleaved"])
def test_mutants_are_noticed(mutant, layout, rope, device):
    arguments = build(Case(granularity="head", layout=layout, rope=rope), device)
    arguments["slot_mapping"][-1] = 100 if 100 not in arguments["slot_mapping"] else 101
    if rope:
        arguments["positions"].clamp_(max=198)
    before = moved(arguments, "cpu")
    write(arguments | (MUTANTS | ROTATION_MUTANTS)[mutant](arguments))
    assert bool(problems(before, arguments)) == (mutant != "none")


# ---- on a GPU alone


@pytest.mark.gpu
@pytest.mark.parametrize("kv_format", ["e4m3", "int8"])
@pytest.mark.parametrize("inputs", ["bf16", "fp16"])
def test_quotients_are_rounded_as_by_a_division(kv_format, inputs):
    """All inputs with 2048 scales over the whole range: of few bits, with a few units beside them, and random ones."""
    random = torch.Generator().manual_seed(0)
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(FORMATS[inputs].dtype).view(32, 1, 2048)
    k = patterns.cuda().expand(32, 256, 2048).contiguous()
    exponents = torch.cat((torch.zeros(192), torch.linspace(-125, 126, 64))).int()
    k_cache, v_cache = torch.empty(2, 2, 16, 256, 2048, dtype=FORMATS[kv_format].dtype, device="cuda")
    for _ in range(8):
        few_bits = 1 + torch.randint(0, 17, (256,), generator=random) / 16
        few_bits += torch.randint(-3, 4, (256,), generator=random) * 2.0**-23
        mantissas = torch.where(torch.arange(256) % 2 == 0, few_bits, 1 + torch.rand(256, generator=random))
        scales = torch.ldexp(mantissas, exponents).cuda()
        slots = torch.arange(32, device="cuda")
        cache_write(k, k, k_cache, v_cache, slots, k_scale=scales, v_scale=scales, layout="NHD")
        stored = quantize(k, kv_format, scales.view(-1, 1)).values.view(2, 16, 256, 2048)
        for result in (k_cache, v_cache):
            assert torch.equal(canonical(result), canonical(stored))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case",
    [
        Case(rope="table"),
        Case(rope="table", kv_format="int8", granularity="token_head"),
        Case(rope="table", kv_format="int8", granularity="token_head", layout=SCALES_IN_PAGE),
    ],
    ids=["e4m3", "int8 computed", "int8 computed in the page"],
)
def test_slots_and_positions_out_of_range_touch_no_other_memory(case):
    arguments = build(case, "cuda")
    slots, positions = arguments["slot_mapping"], arguments["positions"]
    slots[3:6] = torch.tensor([9 * 16, 2**40, -(2**40)])
    positions[7:9] = torch.tensor([2**40, -1])
    before = moved(arguments, "cpu")
    write(arguments)
    before["slot_mapping"][3:6], arguments["slot_mapping"][3:6] = -1, -1
    before["positions"][7:9] = torch.tensor([199, 0])
    arguments["positions"].copy_(before["positions"])
    assert problems(before, arguments) == []


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("rope", ["", "inputs"])
@pytest.mark.parametrize(
    "case",
    [
        Case(granularity="head", layout="interleaved"),
        Case(kv_format="int8", granularity="channel", v_granularity="head", layout="interleaved"),
        Case(kv_format="int8", granularity="token_head", layout=SCALES_IN_PAGE),
    ],
    ids=["e4m3", "int8 static", "int8 computed"],
)
def test_a_graph_sees_other_values_slots_and_scales(overlap, rope, case):
    case = dataclasses.replace(case, rope=rope)
    arguments = build(case, "cuda")
    graph = captured(lambda: write(arguments, overlap=overlap))
    for seed in (1, 2):
        changed = build(dataclasses.replace(case, seed=seed), "cuda")
        for name, tensor in arguments.items():
            if isinstance(tensor, torch.Tensor):
                tensor.copy_(changed[name])
        before = moved(arguments, "cpu")
        graph.replay()
        torch.cuda.synchronize()
        assert problems(before, arguments) == []


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [False, True])
def test_a_kernel_waits_for_the_previous_kernel(overlap):
    """A chain of writes, each of what the one before it wrote: 200 rounds through two caches."""
    tokens, slots = 64, torch.arange(64, device="cuda")
    first, second = (torch.zeros(2, 4, 16, 8, 64, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    values = torch.randn(2, tokens, 8, 64, device="cuda").bfloat16()
    first.view(2, tokens, 8, 64).copy_(values)
    for source, target in ((first, second), (second, first)) * 100:
        k, v = source.view(2, tokens, 8, 64)
        cache_write(v, k, *target, slots, layout="NHD", overlap=overlap)
    assert torch.equal(first.view(2, tokens, 8, 64), values)


@pytest.mark.gpu
def test_a_large_batch_and_far_offsets():
    """8192 tokens into pages whose last byte is over 4 GiB away."""
    pages = 2**32 // (16 * 8 * 128) + 512
    kv_cache = torch.full((pages, 8, 16, 128), 0.5, device="cuda", dtype=torch.bfloat16).to(torch.float8_e4m3fn)
    k, v = torch.randn(2, 8192, 8, 64, device="cuda").bfloat16()
    slots = torch.randperm(8192, device="cuda") + (pages - 512) * 16
    cache_write(k, v, kv_cache[..., :64], kv_cache[..., 64:], slots, layout="HND")
    stored = torch.cat([quantize(x, "e4m3").values.view(torch.uint8) for x in (k, v)], dim=-1)
    written = as_bits(kv_cache[-512:]).transpose(1, 2).reshape(8192, 8, 128)
    assert torch.equal(written[slots - (pages - 512) * 16], stored)
    assert (as_bits(kv_cache[:-512]) == as_bits(torch.tensor(0.5).to(torch.float8_e4m3fn)).item()).all()
