"""Seeded caches as FlashInfer takes them, the attention expected of them, and its bounds. Needs torch and lowp."""

import math
from typing import NamedTuple

import torch

from lowp.paged.layouts import as_bits
from lowp.paged.reference import reference
from lowp.paged.shapes import HEAD_DIM, KV_HEADS, PAGE_SIZE, QUERY_HEADS
from lowp.paged.tables import block_table

SM_SCALE = 1 / math.sqrt(HEAD_DIM)
E4M3_MAX = 448.0


class Cache(NamedTuple):
    """A paged KV cache whose slots outside the requests' tokens hold NaN.

    k, v: [pages, page, KV heads, head_dim] (NHD) or [pages, KV heads, page, head_dim] (HND), in the stored type.
    block_table [batch, widest], seq_lens [batch]: the pages of a request are scattered. indptr [batch + 1],
    indices [used pages], last_page_len [batch]: the same as FlashInfer takes it. All int32, on the device.
    """

    k: torch.Tensor
    v: torch.Tensor
    block_table: torch.Tensor
    seq_lens: torch.Tensor
    indptr: torch.Tensor
    indices: torch.Tensor
    last_page_len: torch.Tensor
    layout: str

    @property
    def head_dim(self) -> int:
        return self.k.shape[3]

    @property
    def page_size(self) -> int:
        return self.k.shape[1] if self.layout == "NHD" else self.k.shape[2]


def paged(
    lengths: list[int],
    dtype: torch.dtype,
    *,
    page_size: int = PAGE_SIZE,
    layout: str = "NHD",
    device: str = "cuda",
    seed: int = 0,
    total_pages: int | None = None,
    head_dim: int = HEAD_DIM,
    key=lambda randn: randn,
) -> Cache:
    """Make a cache of randn tokens, rounded to BF16 and stored in dtype; key: changes the keys before that.

    Caches that differ in dtype and layout alone hold the same tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-length // page_size) for length in lengths]
    spare_pages = total_pages - sum(counts) if total_pages else 3
    table, total = block_table([(0, count) for count in counts], max(counts), generator, spare_pages=spare_pages)
    store = torch.full((2, total, page_size, KV_HEADS, head_dim), math.nan, dtype=torch.float32).to(dtype)
    for row, length in enumerate(lengths):
        values = torch.randn(2, length, KV_HEADS, head_dim, generator=generator)
        values[0] = key(values[0])
        stored = values.bfloat16().float().clamp(-E4M3_MAX, E4M3_MAX).to(dtype)
        token = torch.arange(length)
        as_bits(store)[:, table[row, token // page_size].long(), token % page_size] = as_bits(stored)
    if layout == "HND":
        store = store.transpose(2, 3).contiguous()
    k, v = (half.to(device) for half in store)
    return Cache(
        k,
        v,
        table.to(device),
        torch.tensor(lengths, dtype=torch.int32, device=device),
        torch.tensor([0, *counts], device=device).cumsum(0).int(),
        torch.cat([table[row, :count] for row, count in enumerate(counts)]).to(device),
        torch.tensor([(n - 1) % page_size + 1 for n in lengths], dtype=torch.int32, device=device),
        layout,
    )


def queries(
    count: int, dtype: torch.dtype, *, device: str = "cuda", seed: int = 1, head_dim: int = HEAD_DIM
) -> torch.Tensor:
    """Draw queries from randn, [count, query heads, head_dim]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, QUERY_HEADS, head_dim, generator=generator).to(dtype).to(device)


def attention(
    q: torch.Tensor,
    cache: Cache,
    sinks: torch.Tensor | None,
    *,
    per_request: list[int] | None = None,
    sm_scale: float = SM_SCALE,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    window_left: int = -1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute causal attention over a cache with `reference`, one request at a time.

    q: [rows, heads, head_dim], the queries of a request after those of the one before; per_request: how many each has
    (1). Returns the output and the LSE to base 2 [rows, heads], as FlashInfer gives it, in float64.
    """
    options = {"sm_scale": sm_scale, "window_left": window_left, "layout": cache.layout}
    options["k_scale"], options["v_scale"] = torch.tensor([k_scale, v_scale], dtype=torch.float64, device=q.device)
    outputs, lses = [], []
    for b, rows in enumerate(q.split(per_request or [1] * len(cache.seq_lens))):
        request = (cache.block_table[b : b + 1], cache.seq_lens[b : b + 1])
        out, lse = reference(rows[None], cache.k, cache.v, *request, sinks, **options)
        outputs.append(out[0])
        lses.append(lse[0] / math.log(2))
    return torch.cat(outputs), torch.cat(lses)


def sinks_near(lse: torch.Tensor) -> torch.Tensor:
    """Make sinks [heads] that take about half of each row's probability. lse: base 2 [rows, heads], without sinks."""
    spread = torch.linspace(-0.5, 0.5, lse.shape[1], device=lse.device)
    return (lse.mean(0) * math.log(2) + spread).float()


def faults(output: torch.Tensor, expected: torch.Tensor) -> list[str]:
    """List where an output exceeds the bounds; empty where it does not.

    Bounds of a kernel that rounds to BF16 three times, as FA2 does (probabilities, each split's output, the output):
    each head's relative L2 error at most 4e-3, each element off by at most 2^-7 of itself plus 2^-6 of its row's RMS.
    The first two roundings are each 1.7e-3 of the row's RMS on average; 2^-7 of it would be 3.3 standard deviations.
    """
    failures = []
    output, bad = output.double(), ~torch.isfinite(output)
    if bad.any():
        return [f"{int(bad.sum())} elements are NaN or infinite"]
    error = (output - expected).abs()
    excess = error - (2**-7 * expected.abs() + 2**-6 * expected.square().mean(-1, keepdim=True).sqrt())
    if excess.max() > 0:
        row, head, column = (int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
        failures.append(
            f"row {row}, head {head}, column {column}: got {output[row, head, column]:.6g}, "
            f"expected {expected[row, head, column]:.6g}"
        )
    norm = expected.square().sum((0, 2)).sqrt()
    relative = error.square().sum((0, 2)).sqrt() / norm.clamp_min(torch.finfo(torch.float64).tiny)
    if relative.max() > 4e-3:
        failures.append(f"head {int(relative.argmax())}: relative L2 error {float(relative.max()):.2e}, at most 4e-3")
    return failures


# Mistakes of a kernel: its sinks, and the arguments of `attention` that differ.
MUTANTS = {
    "sinks dropped": lambda s: (None, {}),
    "sinks of the next head": lambda s: (s.roll(1), {}),
    "sinks in base 2": lambda s: (s * math.log(2), {}),
    "k_scale twice": lambda s: (s, {"k_scale": 0.37**2}),
    "k_scale missing": lambda s: (s, {"k_scale": 1.0}),
    "v_scale missing": lambda s: (s, {"v_scale": 1.0}),
    "window longer by one": lambda s: (s, {"window_left": 128}),
    "no window": lambda s: (s, {"window_left": -1}),
}
