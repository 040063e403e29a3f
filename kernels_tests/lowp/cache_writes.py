"""The memory that one write into the cache must leave behind, byte for byte, and many cases of it.

The expectation shares nothing with lowp's own rounding and indexing: it searches the format's values in float64, and
goes through the tokens in a loop. It is computed on a CPU for tensors of any device.
"""

import dataclasses
import itertools

import pytest
import torch

from lowp.cache_write import cache_write, rope_cache_write
from lowp.cache_write.cases import SCALES_IN_PAGE, Case
from lowp.formats import FORMATS
from lowp.paged.layouts import as_bits, in_nhd
from lowp.paged.memory import LAYOUTS, canonical, memory_of, moved

MARGIN = 2.0**-21  # of fp32 arithmetic: rotation and division, relative to the terms
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
on_each_device = pytest.mark.parametrize("device", DEVICES)


def write(arguments, **options):
    function = rope_cache_write if "q" in arguments else cache_write
    return function(**arguments, **options)


def check(arguments, **options):
    """Write, and compare all memory with what it had to become."""
    before = moved(arguments, "cpu")
    write(arguments, **options)
    assert problems(before, arguments) == []


def problems(before: dict, after: dict) -> list[str]:
    """Compare all memory after a call with what it had to become. before: a copy of the arguments, from `moved`."""
    before, after = moved(before, "cpu"), moved(after, "cpu")
    count = len(before["slot_mapping"])
    messages = []
    if computed(before):
        messages += [message for name in ("k", "v") for message in scale_problems(before, after, name)]
    bounds = {name: expected(before, name) for name in ("k", "v")}
    for name, (low, high) in bounds.items():
        result, initial = after[f"{name}_cache"], before[f"{name}_cache"]
        wrong = canonical(result) != canonical(low) if low is high else outside(result, low, high)
        if wrong.any():
            messages.append(f"{name}_cache: {int(wrong.sum())} values")
        as_bits(initial).copy_(as_bits(result))
    for name in ("k_cache", "v_cache", "k_scale", "v_scale"):
        if before[name] is not None and not memory_of(before[name]).equal(memory_of(after[name])):
            messages.append(f"{name}: other memory has changed")
    if "q" in before:
        messages += query_problems(before, after, count)
    for name in ("k", "v", "slot_mapping", "positions", "cos_sin"):
        if name in before and not bits_of(before[name]).equal(bits_of(after[name])):
            messages.append(f"{name}: an input has changed")
    return messages


def computed(arguments: dict) -> bool:
    """Whether the call computes the scales."""
    return arguments["k_scale"] is not None and arguments["k_scale"].dim() == 3


def scale_problems(before: dict, after: dict, name: str) -> list[str]:
    """Compare the scales of the written tokens with their rows', and take them over: the codes are judged by them."""
    low, high = (largest_scale(x) for x in row_bounds(before, name))
    scale, result = (in_nhd(arguments[f"{name}_scale"], before["layout"]) for arguments in (before, after))
    wrong = 0
    for token, slot in enumerate(before["slot_mapping"].tolist()):
        if slot >= 0:
            index = slot // scale.shape[1], slot % scale.shape[1]
            wrong += int((~((low[token] <= result[index]) & (result[index] <= high[token]))).sum())
            scale[index] = result[index]
    return [f"{name}_scale: {wrong} values"] if wrong else []


def largest_scale(bounds: torch.Tensor) -> torch.Tensor:
    """The scale of each row whose magnitudes are `bounds`. A float64 quotient rounded to fp32 is rounded as if once."""
    amax = torch.where(bounds.isfinite(), bounds, 0.0).amax(dim=-1)
    return torch.where(amax > 0, (amax.double() / 127).clamp(min=2.0**-126), 1.0).float()


def row_bounds(before: dict, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest and highest magnitudes of the rows to write, fp32: one tensor but for rotated keys."""
    x, margin = exact_rows(before, name)
    if margin is None:
        return x.abs(), x.abs()
    return (x.abs() - margin).clamp(min=0).float(), (x.abs() + margin).float()


def query_problems(before: dict, after: dict, count: int) -> list[str]:
    result = after.get("q_out", after["q"])
    exact, margin = rotated(before["q"][:count], before["positions"][:count], before["cos_sin"])
    low, high = ((exact + sign * margin).float().to(result.dtype).double() for sign in (-1, 1))
    turned = result[:count].double()
    wrong = ~((low <= turned) & (turned <= high) | (exact.isnan() & turned.isnan()))
    messages = [f"q: {int(wrong.sum())} values"] if wrong.any() else []
    if not as_bits(before.get("q_out", before["q"])[count:]).equal(as_bits(result[count:])):
        messages.append("q: rows past the slots")
    if "q_out" in before and not as_bits(before["q"]).equal(as_bits(after["q"])):
        messages.append("q: an input has changed")
    return messages


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype in (torch.int64, torch.float32) else as_bits(tensor)


def exact_rows(before: dict, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The rows to write, rotated keys in float64; and by how much fp32 arithmetic may miss those, None of others."""
    count = len(before["slot_mapping"])
    if name == "v" or "q" not in before:
        return before[name][:count].float(), None
    return rotated(before["k"][:count], before["positions"][:count], before["cos_sin"])


def expected(before: dict, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The cache after the call: its lowest and highest allowed values, one cache but for rotated keys."""
    x, margin = exact_rows(before, name)
    if margin is None:
        exact = written(before, name, x)
        return exact, exact
    return written(before, name, (x - margin).float()), written(before, name, (x + margin).float())


def written(before: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    """A copy of the cache with the rows of x, fp32, at their slots."""
    kv_cache, scale_of = before[f"{name}_cache"], before[f"{name}_scale"]
    kv_format = next(f for f in FORMATS.values() if f.dtype == kv_cache.dtype)
    codes = nearest((x if scale_of is None else x / divisors(before, name)).double(), kv_format)
    result = moved({"cache": kv_cache}, "cpu")["cache"]
    slots = result if before["layout"] == "NHD" else result.transpose(1, 2)
    for token, slot in enumerate(before["slot_mapping"].tolist()):
        if slot >= 0:
            as_bits(slots)[slot // slots.shape[1], slot % slots.shape[1]] = as_bits(codes[token])
    return result


def divisors(before: dict, name: str) -> torch.Tensor:
    """The scales, to divide [tokens, heads, head_dim]; of tokens without a slot NaN, if they have their own."""
    scale = before[f"{name}_scale"]
    if scale.dim() < 3:
        return scale if scale.dim() == 2 else scale.view(-1, 1)
    slots, scale = before["slot_mapping"], in_nhd(scale, before["layout"])
    result = torch.full((len(slots), scale.shape[2], 1), torch.nan)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            result[token, :, 0] = scale[slot // scale.shape[1], slot % scale.shape[1]]
    return result


def rotated(x, positions, cos_sin) -> tuple[torch.Tensor, torch.Tensor]:
    """The rotated rows in float64, and by how much fp32 arithmetic may miss them."""
    half = x.shape[-1] // 2
    table, x = cos_sin.double()[positions][:, None], x.double()
    cos, sin = table[..., :half], table[..., half:]
    result, margin = torch.empty_like(x), torch.empty_like(x)
    for start, partner, sign in ((0, half, -1), (half, 0, 1)):
        terms = x[..., start : start + half] * cos, sign * x[..., partner : partner + half] * sin
        result[..., start : start + half] = terms[0] + terms[1]
        margin[..., start : start + half] = MARGIN * (terms[0].abs() + terms[1].abs()).nan_to_num(posinf=0.0)
    return result, margin


def nearest(x: torch.Tensor, kv_format) -> torch.Tensor:
    """The nearest value of a format by search: ties to the even code, beyond the largest that one, NaN to NaN or 0."""
    if kv_format.name == "int8":
        grid = torch.arange(128).double()
    else:
        bits = torch.arange(2 ** (8 * kv_format.bytes - 1), dtype=torch.int32)
        values = bits.to(torch.uint8 if kv_format.bytes == 1 else torch.int16).view(kv_format.dtype).double()
        grid = values[values.isfinite()]
    magnitude = x.abs().nan_to_num(nan=0.0, posinf=torch.finfo(torch.float64).max).clamp(max=grid[-1])
    upper = torch.searchsorted(grid, magnitude).clamp(max=len(grid) - 1)
    lower = (upper - 1).clamp(min=0)
    below, above = magnitude - grid[lower], grid[upper] - magnitude
    code = torch.where((below < above) | ((below == above) & (lower % 2 == 0)), lower, upper)
    code = torch.where(magnitude == grid[upper], upper, code)
    if kv_format.name == "int8":
        return (code * x.sign().nan_to_num()).to(torch.int8)
    sign_bit = 2 ** (8 * kv_format.bytes - 1)
    code = torch.where(x.signbit(), code + sign_bit, code)
    code = torch.where(x.isnan(), sign_bit - 1, code)
    integers = torch.uint8 if kv_format.bytes == 1 else torch.uint16
    return code.to(torch.int32).to(integers).view(kv_format.dtype)


def outside(result: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Where a value is not from low to high. Signed zeros are equal."""
    result, low, high = result.double(), low.double(), high.double()
    return ~((low <= result) & (result <= high) | (low.isnan() & result.isnan()))


def saturated(before: dict) -> list[int]:
    """How many values of K and V, written to a slot, are over the format's largest magnitude, or infinite where the
    call computes the scales."""
    counts = []
    for name in ("k", "v"):
        kv_format = next(f for f in FORMATS.values() if f.dtype == before[f"{name}_cache"].dtype)
        x, largest = before[name][: len(before["slot_mapping"])].float(), kv_format.largest
        if computed(before):
            largest = torch.finfo(torch.float32).max
        elif before[f"{name}_scale"] is not None:
            x = x / divisors(before, name)
        counts.append(int((x[before["slot_mapping"] >= 0].abs() > largest).sum()))
    return counts


SIZES = ((37, 37, 16, 2, 8, 128), (1, 1, 1, 1, 1, 16), (33, 30, 64, 8, 64, 64), (9, 5, 2, 3, 5, 80))
# Of scales that the call computes: a row's head_dim a power of two, and in a page more than one row.
AMAX_SIZES = ((37, 37, 16, 2, 8, 128), (3, 3, 2, 1, 1, 16), (33, 30, 64, 8, 64, 64), (9, 5, 2, 3, 5, 512))
NAMES = ("tokens", "slots", "page_size", "kv_heads", "query_heads", "head_dim")
ROPES = ("", "table", "inputs")


def cases():
    """Every format, input, granularity, layout and rotation, with odd sizes in turn."""
    sizes, amax_sizes = itertools.cycle(SIZES), itertools.cycle(AMAX_SIZES)
    for number, (kv_format, inputs, layout, rope) in enumerate(
        itertools.product(("e4m3", "int8", "bf16", "fp16"), ("bf16", "fp16"), LAYOUTS, ROPES)
    ):
        granularities = {"e4m3": ("none", "tensor", "head"), "int8": ("tensor", "head")}.get(kv_format, ("none",))
        case = Case(
            kv_format=kv_format,
            inputs=inputs,
            layout=layout,
            rope=rope,
            granularity=granularities[number % len(granularities)],
            seed=number,
        )
        yield dataclasses.replace(case, pages=70, **dict(zip(NAMES, next(sizes), strict=True)))
    for number, (inputs, layout, rope) in enumerate(
        itertools.product(("bf16", "fp16"), (*LAYOUTS, SCALES_IN_PAGE), ROPES)
    ):
        case = Case(kv_format="int8", inputs=inputs, layout=layout, rope=rope, pages=70, seed=number)
        size = dict(zip(NAMES, next(amax_sizes), strict=True))
        yield dataclasses.replace(case, granularity="token_head", **size)
        if layout in LAYOUTS:
            v_granularity = ("tensor", "head")[number % 2]
            size = dict(zip(NAMES, next(sizes), strict=True))
            yield dataclasses.replace(case, granularity="channel", v_granularity=v_granularity, **size)
