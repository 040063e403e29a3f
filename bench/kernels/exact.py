"""The float64 output of a decode call at some of its layers and sequences, and the error of an output against it."""

import torch

from lowp.paged.inputs import Inputs
from lowp.paged.reference import reference

ROWS = 4  # sequences of a layer that are checked: the first and the last, and the longest beside them
LAYERS = 2


def ends(count: int, most: int) -> list[int]:
    """The first and the last of `count` indices, at most `most` of them."""
    return sorted({*range(min(count, most - most // 2)), *range(max(0, count - most // 2), count)})


def attention(inputs: Inputs, kv_format: str, layer: int, row: int, *, sinks: bool) -> torch.Tensor:
    """One sequence's output over its cache as stored in kv_format, float64 in the shape of its q."""
    sequence = slice(row, row + 1)
    out, _ = reference(
        inputs.q[layer][sequence],
        *inputs.caches[kv_format][layer],
        inputs.block_table[sequence],
        inputs.seq_lens[sequence],
        inputs.sinks if sinks else None,
        sm_scale=inputs.sm_scale,
        window_left=inputs.shape.window_left,
        **inputs.layer_scales(kv_format, layer),
        layout="HND",
    )
    return out[0]


def expected(inputs: Inputs, kv_format: str, *, sinks: bool) -> torch.Tensor:
    """attention() for the layers and sequences that are checked, float64 [checked, ...]."""
    return torch.stack([attention(inputs, kv_format, layer, row, sinks=sinks) for layer, row in _checked(inputs)])


def outputs(inputs: Inputs) -> torch.Tensor:
    """The content of inputs.out for the layers and sequences of expected(), float64."""
    return torch.stack([inputs.out[layer][row].double() for layer, row in _checked(inputs)])


def rel_l2(out: torch.Tensor, exact: torch.Tensor) -> float:
    """|out - exact| / |exact|; NaN if any element of `out` is."""
    return float((out - exact).norm() / exact.norm())


def _checked(inputs: Inputs) -> list[tuple[int, int]]:
    lengths = inputs.shape.lengths
    rows = sorted({*ends(len(lengths), ROWS), lengths.index(max(lengths))})
    return [(layer, row) for layer in ends(len(inputs.q), LAYERS) for row in rows]
