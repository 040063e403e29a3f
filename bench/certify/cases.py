"""The small seeded cases of a certificate: what a server of gpt-oss calls, with poison around and extreme sinks."""

import itertools
import math
from dataclasses import replace

import torch

from lowp.cache_read import cases as reads
from lowp.cache_write import cases as writes
from lowp.paged.cases import Case
from lowp.paged.shapes import HEAD_DIM, KV_HEADS, QUERY_HEADS

ODD_LENGTHS = (1, 0, 15, 16, 17, 128, 129, 300, 1000)
LONG_LENGTHS = (3000, 2047, 777, 0)
WINDOW_LEFT = 127  # gpt-oss's
FORMATS_AND_SCALES = (("e4m3", "none"), ("e4m3", "tensor"), ("e4m3", "head"), ("bf16", "none"))
LAYOUTS = ("interleaved", "HND", "NHD")
SHAPE = {"kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
WRITE = writes.Case(query_heads=QUERY_HEADS, granularity="head", layout="interleaved", **SHAPE)
READ = reads.Case(ends=(37, 0, 16, 1000), room=1, granularity="head", layout="interleaved", **SHAPE)

STRESS = {
    "no sink": {"sinks": -math.inf},
    "sink over all": {"sinks": 1e4},
    "small sink": {"sinks": -1e4},
    "large scores": {"q_factor": 8.0},
    "growing scores": {"growth": 60.0},
}


def decode_cases() -> dict[str, Case]:
    """The decode calls by name: formats, scales and windows; several query tokens; extreme sinks and scores."""
    cases = {}
    for (kv_format, granularity), window_left in itertools.product(FORMATS_AND_SCALES, (-1, WINDOW_LEFT)):
        case = Case(
            ODD_LENGTHS, kv_format=kv_format, granularity=granularity, window_left=window_left, layout="interleaved"
        )
        cases[f"{kv_format}, scales {granularity}, window {window_left}"] = case
    for kv_format, tokens, window_left in itertools.product(("e4m3", "bf16"), (2, 4), (-1, WINDOW_LEFT)):
        case = Case(ODD_LENGTHS, kv_format=kv_format, query_tokens=tokens, window_left=window_left)
        cases[f"{kv_format}, {tokens} query tokens, window {window_left}"] = replace(case, layout="interleaved")
    for kv_format, (name, settings) in itertools.product(("e4m3", "bf16"), STRESS.items()):
        cases[f"{kv_format}, {name}"] = Case(LONG_LENGTHS, kv_format=kv_format, layout="interleaved", **settings)
    base = Case(ODD_LENGTHS, granularity="head")
    return cases | {
        "HND": base,
        "NHD": replace(base, layout="NHD"),
        "pages of 128": replace(base, page_size=128),
        "one KV head": replace(base, query_heads=8, kv_heads=1),
        "wide table": replace(base, table_tokens=131072),
        "batch of 70": replace(base, lengths=ODD_LENGTHS[1:] * 8 + (900,) * 6),
    }


def write_cases() -> dict[str, writes.Case]:
    """The calls of the cache writer by name."""
    cases = {}
    for (kv_format, granularity), layout in itertools.product(FORMATS_AND_SCALES, LAYOUTS):
        case = replace(WRITE, kv_format=kv_format, granularity=granularity, layout=layout, seed=len(cases))
        cases[f"{kv_format}, scales {granularity}, {layout}"] = case
    return cases | {
        "one token": replace(WRITE, tokens=1, slots=1, skipped=0.0),
        "1000 tokens": replace(WRITE, tokens=1000, slots=1000, pages=66),
        "FP16": replace(WRITE, inputs="fp16"),
    }


def read_cases() -> dict[str, reads.Case]:
    """The calls of the gather by name."""
    cases = {}
    for (kv_format, granularity), layout in itertools.product(FORMATS_AND_SCALES, LAYOUTS):
        case = replace(READ, kv_format=kv_format, granularity=granularity, layout=layout, seed=len(cases))
        cases[f"{kv_format}, scales {granularity}, {layout}"] = case
    windows = replace(READ, ends=(200, 127, 128, 1, 55), starts=(73, 0, 1, 0, 40))
    return cases | {"windows": windows, "FP16": replace(windows, out="fp16")}


def with_content(arguments: dict, changed: dict) -> None:
    """Copy the content of `changed` into tensors of the same shapes."""
    for name, tensor in arguments.items():
        if isinstance(tensor, torch.Tensor):
            tensor.copy_(changed[name])
