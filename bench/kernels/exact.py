"""What a decode call should give, in float64, and how far an output is from it."""

import torch

from bench.kernels.inputs import Inputs, first_token, pages_of

ROWS = 4  # requests of a layer that are looked at: the first and the last ones, and the longest
LAYERS = 2


def looked_at(count: int, most: int) -> list[int]:
    """The first and the last of `count` places, `most` of them at the most."""
    return sorted({*range(min(count, most - most // 2)), *range(max(0, count - most // 2), count)})


def attention(inputs: Inputs, kv_format: str, layer: int, row: int, *, sinks: bool) -> torch.Tensor:
    """One request's exact output over its cache as stored in kv_format, float64 [query heads, head_dim].

    Not lowp's reference on purpose: that one belongs to a kernel that is measured here.
    out_h = sum_j e^(s_hj) v_j / (e^sink_h + sum_j e^(s_hj)) with s_hj = sm_scale q_h . k_j, where query head h reads
    KV head h // group, over the tokens j that are read. Without sinks the denominator is the sum alone.
    """
    k, v = (_tokens(inputs, cache, row) for cache in inputs.caches[kv_format][layer])
    q = inputs.q[layer][row].double().view(k.shape[1], -1, k.shape[2])
    logits = torch.einsum("hgd,jhd->hgj", q, k) * inputs.sm_scale
    total = logits.logsumexp(-1)
    if sinks:
        total = torch.logaddexp(total, inputs.sinks.double().view_as(total))
    return torch.einsum("hgj,jhd->hgd", torch.exp(logits - total[..., None]), v).flatten(0, 1)


def expected(inputs: Inputs, kv_format: str, *, sinks: bool) -> torch.Tensor:
    """attention() for the layers and requests that are looked at, float64 [seen, query heads, head_dim]."""
    places = _places(inputs)
    return torch.stack([attention(inputs, kv_format, layer, row, sinks=sinks) for layer, row in places])


def outputs(inputs: Inputs) -> torch.Tensor:
    """What was written into inputs.out at the places of expected(), float64."""
    return torch.stack([inputs.out[layer][row].double() for layer, row in _places(inputs)])


def rel_l2(out: torch.Tensor, exact: torch.Tensor) -> float:
    """|out - exact| / |exact|; NaN if any element of `out` is."""
    return float((out - exact).norm() / exact.norm())


def _places(inputs: Inputs) -> list[tuple[int, int]]:
    lengths = inputs.shape.lengths
    rows = sorted({*looked_at(len(lengths), ROWS), lengths.index(max(lengths))})
    return [(layer, row) for layer in looked_at(len(inputs.q), LAYERS) for row in rows]


def _tokens(inputs: Inputs, cache: torch.Tensor, row: int) -> torch.Tensor:
    """A request's keys or values that are read, in order, float64 [tokens, kv heads, head_dim]."""
    first, page_size = first_token(inputs.shape, row), cache.shape[2]
    begin = first // page_size
    # Gathered as raw bits: indexing is not implemented for float8 on every device.
    bits = cache.view(torch.uint8 if cache.dtype.itemsize == 1 else torch.int16)
    pages = bits[inputs.block_table[row, begin : pages_of(inputs.shape, row)].long()].view(cache.dtype).transpose(1, 2)
    return pages.double().flatten(0, 1)[first - begin * page_size : inputs.shape.lengths[row] - begin * page_size]
