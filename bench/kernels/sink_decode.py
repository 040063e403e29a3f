"""Decode attention with sinks: time, floor and error of our kernel over the standard grid, as JSON.

    python -m bench.kernels.sink_decode OUT.json [--quick]

One CUDA graph a case, over inputs that rotate through at least 400 MB of KV cache: one cache, query and output for
each of a model's layers in turn; the layers share block table and lengths, as in a KV cache group. The median of the
replays counts. Beside each time: the floor (bytes / read ceiling of this run), the law, and relL2 against float64.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median

import torch

from bench.kernels.ceiling import read_ceiling
from bench.kernels.timing import graph_us
from lowp.sink_decode import make_workspace, reference
from lowp.sink_decode.launch import run

GRID = [(1, 2048), (1, 8192), (1, 32768), (1, 131072), (8, 8192), (32, 2048), (32, 8192), (64, 8192), (128, 1024)]
MORE = [(1, 4096), (1, 16384), (2, 8192), (4, 8192), (512, 256)]
QUERY_HEADS, KV_HEADS, PAGE_SIZE = 64, 8, 16
ROTATE_BYTES, MOST_LAYERS = 400_000_000, 250
LAW_US, LAW_SHARE = 3.5, 0.93
FORMATS = {"e4m3": torch.float8_e4m3fn, "bf16": torch.bfloat16}


def layers(lengths, kv_format: str, head_dim: int = 64, window_left: int = -1, bound: int = 0) -> list[dict]:
    """Arguments of the calls of one step: layers with a cache, query and output each, over at least ROTATE_BYTES.

    bound: tokens that the table has room for, at least; 0: as many as the longest row has.
    """
    random = torch.Generator("cuda").manual_seed(0)
    dtype = FORMATS[kv_format]
    used = [-(-length // PAGE_SIZE) for length in lengths]
    pages = sum(used)
    size = (pages, KV_HEADS, PAGE_SIZE, head_dim)
    layer_bytes = 2 * torch.Size(size).numel() * dtype.itemsize
    read = read_bytes(lengths, kv_format, head_dim, window_left)
    count = max(1, min(-(-ROTATE_BYTES // read), MOST_LAYERS, 12_000_000_000 // layer_bytes))
    order = torch.randperm(pages, generator=random, device="cuda").int()
    table = torch.zeros(len(lengths), max(*used, -(-bound // PAGE_SIZE)), dtype=torch.int32, device="cuda")
    for row, part in enumerate(order.split(used)):
        table[row, : len(part)] = part
    sinks = 5 * torch.rand(QUERY_HEADS, generator=random, device="cuda")
    scales = [torch.tensor([value], device="cuda") for value in (0.75, 1.25)]
    seq_lens = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    workspace = make_workspace(len(lengths), QUERY_HEADS, KV_HEADS, head_dim, "cuda")
    made = []
    for _ in range(count):
        k_cache, v_cache = (_cache(size, dtype, random) for _ in range(2))
        q = torch.randn(len(lengths), QUERY_HEADS, head_dim, generator=random, device="cuda").bfloat16()
        made.append(
            {
                "q": q,
                "k_cache": k_cache,
                "v_cache": v_cache,
                "block_table": table,
                "seq_lens": seq_lens,
                "sinks": sinks,
                "sm_scale": head_dim**-0.5,
                "window_left": window_left,
                "k_scale": scales[0],
                "v_scale": scales[1],
                "layout": "HND",
                "out": torch.full_like(q, torch.nan),
                "lse": None,
                "workspace": workspace,
            }
        )
    return made


def _cache(size, dtype, random):
    cache = torch.empty(size, dtype=dtype, device="cuda")
    step = max(1, 2**27 // cache[0].numel())
    for part in cache.split(step):
        part.copy_(torch.randn(part.shape, generator=random, device="cuda", dtype=torch.bfloat16))
    return cache


def read_bytes(lengths, kv_format: str, head_dim: int = 64, window_left: int = -1) -> int:
    """Keys and values that a call must read."""
    tokens = sum(length if window_left < 0 else min(length, window_left + 1) for length in lengths)
    return 2 * tokens * KV_HEADS * head_dim * FORMATS[kv_format].itemsize


def error_of(arguments, rows: int = 4) -> float:
    """relL2 of `out` against the reference, in the first and the last rows."""
    batch = len(arguments["q"])
    some = sorted({*range(min(batch, rows // 2)), *range(max(0, batch - rows // 2), batch)})
    same = {key: value for key, value in arguments.items() if key not in ("out", "lse", "workspace")}
    same |= {key: arguments[key][some] for key in ("q", "block_table", "seq_lens")}
    exact, _ = reference(**same)
    return ((arguments["out"][some].double() - exact).norm() / exact.norm()).item()


def measure(name, lengths, kv_format, ceiling, head_dim=64, window_left=-1, bound=0, shapes=(None,)):
    """A row for each launch, a Shape; None is the chosen one."""
    made = layers(lengths, kv_format, head_dim, window_left, bound)
    read = read_bytes(lengths, kv_format, head_dim, window_left)
    rows = []
    for shape in shapes:
        made[0]["out"].fill_(torch.nan)
        samples = graph_us([lambda one=one, shape=shape: run(**one, shape=shape) for one in made])
        rows.append(
            {
                "case": name,
                "kv_format": kv_format,
                "head_dim": head_dim,
                "window_left": window_left,
                "bound": bound or max(lengths),
                "layers": len(made),
                "bytes": read,
                "shape": None if shape is None else repr(shape),
                "us": median(samples),
                "samples_us": samples,
                "floor_us": read / ceiling * 1e6,
                "law_us": LAW_US + read / (LAW_SHARE * ceiling) * 1e6,
                "rel_l2": error_of(made[0]),
            }
        )
    return rows


def ragged_cases() -> dict[str, tuple[int, ...]]:
    """Batches of unequal lengths."""
    drawn = torch.randint(512, 16385, (32,), generator=torch.Generator().manual_seed(0))
    return {
        "1x131072+31x512": (131072, *(512,) * 31),
        "31x512+1x131072": (*(512,) * 31, 131072),
        "32xU[512,16384]": tuple(drawn.tolist()),
        "8192+3x512": (8192, 512, 512, 512),
    }


def line(row) -> str:
    law = "met   " if row["us"] <= row["law_us"] else f"+{100 * (row['us'] / row['law_us'] - 1):4.1f}%"
    share = 100 * row["floor_us"] / row["us"]
    return (
        f"{row['case']:>17s} {row['kv_format']:5s} d{row['head_dim']:<3d} w{row['window_left']:<4d}"
        f" {row['us']:8.2f} us  law {row['law_us']:7.2f} {law} {share:5.1f}% of ceiling  relL2 {row['rel_l2']:.2e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="e4m3 over the standard grid alone")
    chosen = parser.parse_args()
    ceiling = read_ceiling()
    print(f"{torch.cuda.get_device_name()}, read ceiling {ceiling / 1e12:.3f} TB/s", file=sys.stderr)
    rows = []

    def add(*case, **more):
        for row in measure(*case, ceiling, **more):
            print(line(row), file=sys.stderr, flush=True)
            rows.append(row)
        torch.cuda.empty_cache()

    for kv_format in ("e4m3",) if chosen.quick else FORMATS:
        for batch, context in GRID if chosen.quick else GRID + MORE:
            add(f"{batch}x{context}", (context,) * batch, kv_format)
    if not chosen.quick:
        for name, lengths in ragged_cases().items():
            add(name, lengths, "e4m3")
        for batch, context in [(1, 2048), (8, 8192), (32, 2048)]:  # as under a CUDA graph for any length
            add(f"{batch}x{context} of 131072", (context,) * batch, "e4m3", bound=131072)
        for batch, context in [(1, 8192), (8, 8192), (32, 8192), (128, 2048)]:
            add(f"{batch}x{context}", (context,) * batch, "e4m3", window_left=127)
        for batch, context in [(1, 8192), (8, 8192), (32, 8192)]:
            add(f"{batch}x{context}", (context,) * batch, "e4m3", head_dim=128)
    record = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "read_ceiling_bytes_per_s": ceiling,
        "rows": rows,
    }
    chosen.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
