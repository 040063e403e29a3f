"""Paged KV caches, the attention that they should give, and when an output is close enough. Needs torch alone."""

import math
from typing import NamedTuple

import torch

QO_HEADS, KV_HEADS, HEAD_DIM = 64, 8, 64
SM_SCALE = 1 / math.sqrt(HEAD_DIM)
E4M3_MAX = 448.0


class Cache(NamedTuple):
    """A paged KV cache as FlashInfer takes it; what lies outside the requests' tokens is NaN.

    k, v: [pages, page, KV heads, head_dim] (NHD) or [pages, KV heads, page, head_dim] (HND), in the stored type.
    indptr [batch + 1], indices [used pages], last_page_len [batch]: int32, on the device; the pages of a request are
    scattered. tokens: for each request its stored K and V, float64 [length, KV heads, head_dim].
    exact: the same before they were stored, BF16 values.
    """

    k: torch.Tensor
    v: torch.Tensor
    indptr: torch.Tensor
    indices: torch.Tensor
    last_page_len: torch.Tensor
    tokens: list[tuple[torch.Tensor, torch.Tensor]]
    exact: list[tuple[torch.Tensor, torch.Tensor]]
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
    page_size: int = 16,
    layout: str = "NHD",
    device: str = "cuda",
    seed: int = 0,
    total_pages: int | None = None,
    head_dim: int = HEAD_DIM,
    key=lambda randn: randn,
) -> Cache:
    """A cache of randn tokens with a fragmented page table. key: changes the keys before they are stored."""
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-length // page_size) for length in lengths]
    total = total_pages or sum(counts) + 3
    pages = torch.randperm(total, generator=generator)[: sum(counts)]
    # NaN through uint8: filling an FP8 tensor with NaN is not implemented on every device.
    store = torch.full((2, total, page_size, KV_HEADS, head_dim), math.nan, dtype=torch.float32).to(dtype)
    tokens, exact, start = [], [], 0
    for length, count in zip(lengths, counts, strict=True):
        values = torch.randn(2, length, KV_HEADS, head_dim, generator=generator)
        values[0] = key(values[0])
        values = values.bfloat16()
        stored = values.float().clamp(-E4M3_MAX, E4M3_MAX).to(dtype)
        table = pages[start : start + count].repeat_interleave(page_size)[:length]
        store.view(torch.uint8)[:, table, torch.arange(length) % page_size] = stored.view(torch.uint8)
        tokens.append(tuple(stored.double().to(device)))
        exact.append(tuple(values.double().to(device)))
        start += count
    if layout == "HND":
        store = store.transpose(2, 3).contiguous()
    k, v = (half.to(device) for half in store)
    return Cache(
        k,
        v,
        torch.tensor([0, *counts], device=device).cumsum(0).int(),
        pages.int().to(device),
        torch.tensor([(n - 1) % page_size + 1 for n in lengths], dtype=torch.int32, device=device),
        tokens,
        exact,
        layout,
    )


def queries(
    count: int, dtype: torch.dtype, *, device: str = "cuda", seed: int = 1, head_dim: int = HEAD_DIM
) -> torch.Tensor:
    """randn queries, [count, query heads, head_dim]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, QO_HEADS, head_dim, generator=generator).to(dtype).to(device)


def reference(
    q: torch.Tensor,
    tokens: list[tuple[torch.Tensor, torch.Tensor]],
    sinks: torch.Tensor | None,
    *,
    per_request: list[int] | None = None,
    sm_scale: float = SM_SCALE,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    window_left: int = -1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention with sinks in float64: out = sum_j e^(s_j) v_j / (e^sink + sum_j e^(s_j)), and its LSE.

    The queries of a request are its last positions; per_request: how many each has (1). s_j = sm_scale k_scale q.k_j;
    position p sees the keys j with p - window_left <= j <= p. Returns [rows, heads, head_dim] and the logarithm of
    the denominator to base 2 [rows, heads], as FlashInfer gives it.
    """
    outputs, denominators, start = [], [], 0
    for (k, v), count in zip(tokens, per_request or [1] * len(tokens), strict=True):
        length, group = len(k), q.shape[1] // k.shape[1]
        logits = torch.einsum(
            "ihd,jhd->hij", q[start : start + count].double(), k.repeat_interleave(group, 1) * (sm_scale * k_scale)
        )
        position = torch.arange(length - count, length, device=q.device)[:, None]
        other = torch.arange(length, device=q.device)[None]
        seen = other <= position
        if window_left >= 0:
            seen &= other >= position - window_left
        logits = logits.masked_fill(~seen, -math.inf)
        lse = logits.logsumexp(-1)
        if sinks is not None:
            lse = torch.logaddexp(lse, sinks.double()[:, None])
        weights = torch.exp(logits - lse[..., None])
        outputs.append(torch.einsum("hij,jhd->ihd", weights, v.repeat_interleave(group, 1) * v_scale))
        denominators.append(lse.T / math.log(2))
        start += count
    return torch.cat(outputs), torch.cat(denominators)


def sinks_near(lse: torch.Tensor) -> torch.Tensor:
    """Sinks [heads] that take about half of each row's probability. lse: base 2 [rows, heads], without sinks."""
    spread = torch.linspace(-0.5, 0.5, lse.shape[1], device=lse.device)
    return (lse.mean(0) * math.log(2) + spread).float()


def faults(output: torch.Tensor, expected: torch.Tensor) -> list[str]:
    """What is wrong with an output (none: empty list).

    Bounds of a kernel that rounds to BF16 three times, as FA2 does (probabilities, each split's output, the output):
    each head's relative L2 error at most 4e-3, each element off by at most 2^-7 of itself plus 2^-6 of its row's RMS.
    The first two roundings are each 1.7e-3 of the row's RMS on average; 2^-7 of it would be 3.3 standard deviations.
    """
    found = []
    output, bad = output.double(), ~torch.isfinite(output)
    if bad.any():
        return [f"{int(bad.sum())} elements are NaN or infinite"]
    error = (output - expected).abs()
    excess = error - (2**-7 * expected.abs() + 2**-6 * expected.square().mean(-1, keepdim=True).sqrt())
    if excess.max() > 0:
        row, head, column = (int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
        found.append(
            f"row {row}, head {head}, column {column}: got {output[row, head, column]:.6g}, "
            f"expected {expected[row, head, column]:.6g}"
        )
    norm = expected.square().sum((0, 2)).sqrt()
    relative = error.square().sum((0, 2)).sqrt() / norm.clamp_min(torch.finfo(torch.float64).tiny)
    if relative.max() > 4e-3:
        found.append(f"head {int(relative.argmax())}: relative L2 error {float(relative.max()):.2e}, at most 4e-3")
    return found


# What a wrong kernel would have computed: its sinks, and arguments of `reference` that differ.
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
