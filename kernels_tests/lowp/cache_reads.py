"""The memory that one read of the cache must leave behind, byte for byte, and many cases of it.

The expectation goes through the tokens in a loop and multiplies in float64, which is exact; it is computed on a CPU for
tensors of any device.
"""

import itertools

import torch

from lowp.cache_read.cases import Case
from lowp.paged.layouts import as_bits, in_nhd
from lowp.paged.memory import LAYOUTS, canonical, memory_of, moved


def problems(before: dict, after: dict) -> list[str]:
    """Compare all memory after a call with what it had to become. before: a copy of the arguments, from `moved`."""
    before, after = moved(before, "cpu"), moved(after, "cpu")
    messages = []
    for name in ("k", "v"):
        write(before, name)
        result, exact = (canonical(arguments[f"{name}_out"]) for arguments in (after, before))
        if not result.equal(exact):
            messages.append(f"{name}_out: {int((result != exact).sum())} values")
        as_bits(after[f"{name}_out"]).copy_(as_bits(before[f"{name}_out"]))  # NaN may differ in form
    for name, tensor in before.items():
        if isinstance(tensor, torch.Tensor) and not memory_of(tensor).equal(memory_of(after[name])):
            messages.append(f"{name}: other memory has changed")
    return messages


def write(arguments: dict, name: str) -> None:
    """Write what the call has to, token by token."""
    cache = in_nhd(arguments[f"{name}_cache"], arguments["layout"])
    scale_of, out = arguments[f"{name}_scale"], arguments[f"{name}_out"]
    if scale_of is not None and scale_of.dim() == 3:
        scale_of = in_nhd(scale_of, arguments["layout"])
    starts = [0] * len(arguments["ends"]) if arguments["starts"] is None else arguments["starts"].tolist()
    for i, (start, end) in enumerate(zip(starts, arguments["ends"].tolist(), strict=True)):
        for token in range(start, end):
            page, slot = int(arguments["block_table"][i, token // cache.shape[1]]), token % cache.shape[1]
            factor = torch.ones(1) if scale_of is None else scale_of
            if factor.dim() == 3:
                factor = factor[page, slot]
            factor = factor.view(-1, 1) if factor.dim() == 1 else factor
            exact = cache[page, slot].double() * factor.double()
            out[int(arguments["cu_out"][i]) + token - start] = exact.float().to(out.dtype)


SIZES = (
    {},
    {"ends": (1, 15, 16, 17, 0, 33), "starts": (0, 3, 0, 16, 0, 31), "page_size": 16, "kv_heads": 8},
    {"ends": (40, 33, 70), "shared": 2, "room": 3, "kv_heads": 3, "head_dim": 32, "joined": True},
    {"ends": (130, 300), "starts": (3, 173), "page_size": 128, "kv_heads": 1, "head_dim": 128, "joined": True},
    {"ends": (5, 0, 0, 9), "starts": (2, 0, 0, 9), "page_size": 1, "kv_heads": 5, "head_dim": 96, "room": 1},
)
GRANULARITIES = {
    "e4m3": ("none", "tensor", "head", "token_head", ("head", "none"), ("token_head", "tensor")),
    "int8": ("tensor", "head", "token_head", "channel", ("channel", "head"), ("channel", "token_head")),
    "bf16": ("none",),
    "fp16": ("none",),
}


def cases():
    """Every format, granularity, output and layout, with odd sizes in turn."""
    sizes = itertools.cycle(SIZES)
    for number, (kv_format, out, layout) in enumerate(
        itertools.product(GRANULARITIES, ("bf16", "fp16"), LAYOUTS),
    ):
        for granularity in GRANULARITIES[kv_format]:
            k, v = granularity if isinstance(granularity, tuple) else (granularity, granularity)
            v = "tensor" if v == "channel" else v
            yield Case(
                kv_format=kv_format,
                out=out,
                layout=layout,
                granularity=k,
                v_granularity=v,
                seed=number,
                **next(sizes),
            )
