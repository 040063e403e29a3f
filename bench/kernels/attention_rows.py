"""Attention of BF16 values with operands in low precision, against float64: the second table of `--validate`.

One shape of normal values, where no head needs a scale to stay in range. Storage rows round K and V alone and compute
in BF16; other rows round Q and the probabilities P too. Bounds and verdicts are in `lowp.formats`' table.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from flashinfer_patches.strict import NotNegative, Strict
from lowp.formats import FORMATS, amax_scale, dequantize, quantize
from lowp.formats.table import OUTSIDE_BOUND
from lowp.static_cache import full_fp8

HEADS, QUERY_TOKENS, TOKENS, HEAD_DIM = 8, 128, 2048, 64
SEED = 19
RTOL = ATOL = 5e-3
STORED = {  # granularity of K's and V's scales by storage format
    "e4m3": "head",
    "e5m2": "head",
    "int8": "token_head",
    "int4": "token_head",
    "mxfp8": "block",
    "mxfp4": "block",
}


class AttentionRow(Strict):
    """Attention in one precision. name: what is rounded. kv_format: whose bound holds. rel_l2: of the worst head.

    values_rel_l2, weights_rel_l2: of K and V, and of the softmax weights, stored and read back. outside: share of the
    outputs outside allclose. ships: rel_l2 and outside are within their bounds.
    """

    name: str
    kv_format: str
    rel_l2: NotNegative
    max_error: NotNegative
    mean_error: NotNegative
    outside: Annotated[float, Field(ge=0, le=1)]
    values_rel_l2: NotNegative
    weights_rel_l2: NotNegative
    bound: NotNegative
    ships: bool


class Inputs(NamedTuple):
    """[1, heads, tokens, head_dim], BF16 values in fp32."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


class Precision(NamedTuple):
    """attend: Inputs to output. granularity: of K's and V's scales. weights: P stored and read back, of scores."""

    name: str
    kv_format: str
    granularity: str
    attend: Callable[[Inputs], torch.Tensor]
    weights: Callable[[torch.Tensor], torch.Tensor]


def rows() -> Iterator[AttentionRow]:
    """Yield the row of each precision; seconds on a CPU."""
    inputs = draw()
    scores = _scores(*(x.double() for x in inputs[:2]))
    exact_weights = scores.softmax(-1)
    exact = exact_weights @ inputs.v.double()
    for precision in precisions():
        error = (precision.attend(inputs).double() - exact).abs()
        rel_l2 = (error[0].flatten(1).norm(dim=1) / exact[0].flatten(1).norm(dim=1)).max().item()
        outside = (error > ATOL + RTOL * exact.abs()).double().mean().item()
        stored = torch.cat([_stored(x, precision.kv_format, precision.granularity) for x in inputs[1:]])
        bound = FORMATS[precision.kv_format].rel_l2_bound
        yield AttentionRow(
            name=precision.name,
            kv_format=precision.kv_format,
            rel_l2=_rounded(rel_l2),
            max_error=_rounded(error.max().item()),
            mean_error=_rounded(error.mean().item()),
            outside=_rounded(outside),
            values_rel_l2=_rounded(_rel_l2(stored, torch.cat(inputs[1:]))),
            weights_rel_l2=_rounded(_rel_l2(precision.weights(scores.float()), exact_weights)),
            bound=bound,
            ships=rel_l2 <= bound and outside <= OUTSIDE_BOUND,
        )


def precisions() -> Iterator[Precision]:
    for name, granularity, scaled_p in (
        ("e4m3 Q, K, V, P unscaled", "none", False),
        ("e4m3 Q, K, V scaled per tensor", "tensor", False),
        ("e4m3 Q, K, V scaled per head", "head", False),
        ("e4m3 P scaled too, per tensor", "tensor", True),
        ("e4m3 P scaled too, per head", "head", True),
    ):
        yield Precision(
            name,
            "e4m3",
            granularity,
            lambda x, g=granularity, p=scaled_p: full_fp8.attention(*x, granularity=g, scaled_p=p),
            lambda scores, p=scaled_p: _fp8_weights(scores, p),
        )
    for kv_format, granularity in STORED.items():
        yield _storage(f"{kv_format} storage, bf16 math", kv_format, granularity, "bf16")
    for kv_format in ("fp16", "bf16"):
        yield _storage(kv_format, kv_format, "none", kv_format)


def lines(results: list[AttentionRow]) -> Iterator[str]:
    """A table: a line for each row."""
    headers = ("relL2", "bound", "max", "mean", "outside", "K, V", "P")
    yield " ".join([f"{'attention against float64':32}", *(f"{header:>9}" for header in headers), "verdict"])
    for row in results:
        errors = [row.rel_l2, row.bound, row.max_error, row.mean_error]
        errors += [row.values_rel_l2, row.weights_rel_l2]
        cells = [f"{error:9.2g}" for error in errors]
        cells.insert(4, f"{row.outside:9.2%}")
        verdict = "ship" if row.ships else "do not ship"
        yield " ".join([f"{row.name:32}", *cells, verdict])


def plot(results: list[AttentionRow], path: Path) -> None:
    """relL2 of each row and its bound as bars."""
    from bench.report.figure import COLOURS, frame, save  # matplotlib is slow to load

    title = f"Attention in low precision against float64, {TOKENS:,} tokens: {sum(r.ships for r in results)} rows ship"
    with frame(title, 1.5 + 0.3 * len(results), 1, 1) as (figure, (panel,)):
        heights = range(len(results))
        panel.barh(heights, [row.rel_l2 for row in results], color=[COLOURS[2 if r.ships else 1] for r in results])
        for height, row in zip(heights, results, strict=True):
            panel.plot([row.bound] * 2, [height - 0.4, height + 0.4], color="#404040", linewidth=1.6)
        panel.set_yticks(heights, [row.name for row in results])
        panel.set_axisbelow(True)
        panel.invert_yaxis()
        panel.set_xscale("log")
        panel.set_xlabel("relL2 of the worst head; line: bound; green: ships")
        save(figure, path)


def draw() -> Inputs:
    random = torch.Generator().manual_seed(SEED)
    sizes = (QUERY_TOKENS, TOKENS, TOKENS)
    return Inputs(*(torch.randn(1, HEADS, n, HEAD_DIM, generator=random).bfloat16().float() for n in sizes))


def _storage(name: str, kv_format: str, granularity: str, math: str) -> Precision:
    """K and V in a storage format; Q, P and the dequantised K and V in the format of the products."""
    dtype = FORMATS[math].dtype

    def attend(x: Inputs) -> torch.Tensor:
        k, v = (_stored(part, kv_format, granularity).to(dtype).float() for part in x[1:])
        return _scores(x.q.to(dtype).float(), k).softmax(-1).to(dtype).float() @ v

    return Precision(name, kv_format, granularity, attend, lambda scores: scores.softmax(-1).to(dtype).float())


def _stored(x: torch.Tensor, kv_format: str, granularity: str) -> torch.Tensor:
    scale = amax_scale(x, kv_format, granularity, "HND")
    return dequantize(quantize(x, kv_format, scale).values, scale, kv_format)


def _scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return q @ k.transpose(-1, -2) * HEAD_DIM**-0.5


def _fp8_weights(scores: torch.Tensor, scaled_p: bool) -> torch.Tensor:
    p, factor = full_fp8.weights(scores, "e4m3", scaled_p)
    return p * factor


def _rel_l2(x: torch.Tensor, exact: torch.Tensor) -> float:
    return ((x - exact).norm() / exact.norm()).item()


def _rounded(value: float) -> float:
    return float(f"{value:.3e}")
