"""The memory that one write into the cache must leave behind, byte for byte, and many cases of it.

The expectation shares nothing with lowp's own rounding and indexing: it searches the format's values in float64, and
goes through the tokens in a loop. It is computed on a CPU for tensors of any device.
"""

import dataclasses
import itertools

import torch

from lowp.cache_write.cases import Case
from lowp.formats import FORMATS
from lowp.paged.layouts import as_bits
from lowp.paged.memory import LAYOUTS, canonical, memory_of, moved

MARGIN = 2.0**-21  # of fp32 arithmetic: rotation and division, relative to the terms


def problems(before: dict, after: dict) -> list[str]:
    """Compare all memory after a call with what it had to become. before: a copy of the arguments, from `moved`."""
    before, after = moved(before, "cpu"), moved(after, "cpu")
    count = len(before["slot_mapping"])
    messages = []
    bounds = {name: expected(before, name) for name in ("k", "v")}
    for name, (low, high) in bounds.items():
        result, initial = after[f"{name}_cache"], before[f"{name}_cache"]
        wrong = canonical(result) != canonical(low) if low is high else outside(result, low, high)
        if wrong.any():
            messages.append(f"{name}_cache: {int(wrong.sum())} values")
        as_bits(initial).copy_(as_bits(result))
    for name in ("k_cache", "v_cache"):
        if not memory_of(before[name]).equal(memory_of(after[name])):
            messages.append(f"{name}: memory outside of the cache")
    if "q" in before:
        messages += query_problems(before, after, count)
    for name in ("k", "v", "slot_mapping", "positions", "cos_sin"):
        if name in before and not bits_of(before[name]).equal(bits_of(after[name])):
            messages.append(f"{name}: an input has changed")
    return messages


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


def expected(before: dict, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The cache after the call: its lowest and highest allowed values, one cache but for rotated keys."""
    count = len(before["slot_mapping"])
    if name == "v" or "q" not in before:
        exact = written(before, name, before[name][:count].float())
        return exact, exact
    x, margin = rotated(before["k"][:count], before["positions"][:count], before["cos_sin"])
    return written(before, name, (x - margin).float()), written(before, name, (x + margin).float())


def written(before: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    """A copy of the cache with the rows of x, fp32, at their slots."""
    kv_cache, scale_of = before[f"{name}_cache"], before[f"{name}_scale"]
    kv_format = next(f for f in FORMATS.values() if f.dtype == kv_cache.dtype)
    quotient = x if scale_of is None else x / scale_of.view(-1, 1)
    codes = nearest(quotient.double(), kv_format)
    result = moved({"cache": kv_cache}, "cpu")["cache"]
    slots = result if before["layout"] == "NHD" else result.transpose(1, 2)
    for token, slot in enumerate(before["slot_mapping"].tolist()):
        if slot >= 0:
            as_bits(slots)[slot // slots.shape[1], slot % slots.shape[1]] = as_bits(codes[token])
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
    """How many values of K and V, written to a slot, are over the format's largest magnitude."""
    counts = []
    for name in ("k", "v"):
        kv_format = next(f for f in FORMATS.values() if f.dtype == before[f"{name}_cache"].dtype)
        x = before[name][: len(before["slot_mapping"])].float()
        if before[f"{name}_scale"] is not None:
            x = x / before[f"{name}_scale"].view(-1, 1)
        counts.append(int((x[before["slot_mapping"] >= 0].abs() > kv_format.largest).sum()))
    return counts


def cases():
    """Every format, input, granularity, layout and rotation, with odd sizes in turn."""
    sizes = itertools.cycle(
        [(37, 37, 16, 2, 8, 128), (1, 1, 1, 1, 1, 16), (33, 30, 64, 8, 64, 64), (9, 5, 2, 3, 5, 80)]
    )
    for number, (kv_format, inputs, layout, rope) in enumerate(
        itertools.product(("e4m3", "int8", "bf16", "fp16"), ("bf16", "fp16"), LAYOUTS, ("", "table", "inputs"))
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
        names = ("tokens", "slots", "page_size", "kv_heads", "query_heads", "head_dim")
        yield dataclasses.replace(case, pages=70, **dict(zip(names, next(sizes), strict=True)))
