"""Decode kernels as a server calls them: hundreds of shapes as quantiles against the law and against other kernels."""

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from bench.kernels.comparison import (
    ACCURATE_REL_L2,
    BETWEEN_US,
    LAW,
    LAW_US,
    by_shape,
    law_us,
    ours,
    peers_by_shape,
)
from bench.kernels.grid import BASE, INT8, INT8_STATIC, QUANTISED
from bench.kernels.peers import OURS
from bench.kernels.result import KernelRow, KernelsResult
from bench.report import markdown as md
from bench.report.numbers import number
from lowp.paged.shapes import LAYOUT, Shape

SHORT_TOKENS = 64  # shapes of fewer have their own bounds: latency decides, not bytes
MOST_NAMED = 8  # misses that a line names
NOTE = (
    "Block table for 131,072 tokens, keys and values of a token side by side; near: lengths within 64 tokens, uniform:"
    f" from half of the longest on. x law: time over {LAW}. Between: with a small addition after each call, less the"
    f" addition; its law has {BETWEEN_US:g} us. Every kernel at its fastest setting, its inputs read from memory."
)


class Quantiles(NamedTuple):
    """Quantiles of ratios to the law. p95: the least of the ratios that 95% do not exceed."""

    median: float
    p95: float
    worst: float


class Rival(NamedTuple):
    """A group of other kernels, or ours with another cache; at each shape our kernel is compared with the fastest.

    kv_format: of our cache. includes: whether a row is of the group. max_ratio: bound of our time over theirs.
    """

    kv_format: str
    name: str
    includes: Callable[[KernelRow], bool]
    max_ratio: float


def _is_accurate_peer(row: KernelRow) -> bool:
    return row.kernel != OURS and row.rel_l2 <= ACCURATE_REL_L2


def _is(kernel: str, kv_format: str) -> Callable[[KernelRow], bool]:
    return lambda row: (row.kernel, row.kv_format) == (kernel, kv_format)


BOUNDS = {QUANTISED: Quantiles(1.03, 1.12, 1.20), BASE: Quantiles(1.02, 1.12, 1.20)}
# Of the law of their own bytes, E4M3's bounds: set before the first run in int8.
BOUNDS |= dict.fromkeys((INT8, INT8_STATIC), BOUNDS[QUANTISED])
SHORT_BOUNDS = Quantiles(math.inf, math.inf, 1.40)
RIVALS = (
    Rival(QUANTISED, "best accurate peer", _is_accurate_peer, 1.0),
    Rival(QUANTISED, "xqa-sinks e4m3", _is("xqa-sinks", QUANTISED), 1.0),
    Rival(BASE, "best bf16 peer", lambda row: row.kernel != OURS and row.kv_format == BASE, 1.02),
    # Without a bound, which a decode step has: by its bytes alone, int8 takes 1.0625 of E4M3's time.
    Rival(INT8, f"{OURS} e4m3", _is(OURS, QUANTISED), math.inf),
    Rival(INT8_STATIC, f"{OURS} e4m3", _is(OURS, QUANTISED), math.inf),
)


def quantiles(values: Sequence[float]) -> Quantiles:
    ordered = sorted(values)
    return Quantiles(median(ordered), ordered[math.ceil(0.95 * len(ordered)) - 1], ordered[-1])


def over_law(result: KernelsResult, row: KernelRow) -> float:
    return row.time_us / law_us(row, result.ceiling(row), LAW_US)


def between_over_law(result: KernelsResult, row: KernelRow) -> float:
    return row.between_us / law_us(row, result.ceiling(row), BETWEEN_US)


def bounds(row: KernelRow) -> Quantiles:
    return SHORT_BOUNDS if row.context < SHORT_TOKENS else BOUNDS[row.kv_format]


def page(result: KernelsResult, rows: list[KernelRow]) -> list[str]:
    """Our kernel against the law and its rivals, and where it misses a bound; empty where it was not measured."""
    measured = [row for row in rows if row.kernel == OURS and not row.error]
    if not measured:
        return []
    misses = [
        (over_law(result, row), f"{_label(row.shape)} {row.kv_format}")
        for row in measured
        if over_law(result, row) > bounds(row).worst
    ]
    lost = [
        (ratio, f"{_label(row.shape)} {rival.kv_format} against {rival.name}")
        for rival in RIVALS
        for row, ratio in _ratios(rows, rival)
        if ratio > rival.max_ratio
    ]
    law = f"Over {BOUNDS[BASE].worst:g} of the law, or {SHORT_BOUNDS.worst:g} under {SHORT_TOKENS} tokens:"
    blocks = [_law_table(result, measured), *_rival_table(rows)]
    return [*blocks, *_worst_misses(law, misses), *_worst_misses("Slower than a peer, beyond the bound:", lost)]


def details(result: KernelsResult, rows: list[KernelRow]) -> list[str]:
    """Every shape of each grid: our kernel with every cache, and the best accurate peer."""
    blocks, peers = [], peers_by_shape(rows)
    for grid in dict.fromkeys(row.grid for row in rows):
        formats = [name for name in BOUNDS if any(_is(OURS, name)(row) for row in rows if row.grid == grid)]
        by_format = {}
        for row in rows:
            if row.grid == grid and row.kernel == OURS:
                by_format.setdefault(row.shape, {})[row.kv_format] = row
        order = sorted(by_format, key=lambda shape: (shape.window_left, shape.batch, shape.context, shape.spread))
        lines = []
        for shape in order:
            best = next((peer for peer in peers.get(shape, []) if peer.rel_l2 <= ACCURATE_REL_L2), None)
            cells = [_cell(result, by_format[shape].get(name)) for name in formats]
            peer_cell = f"{number(best.time_us)}, {md.text(best.kernel)} {best.kv_format}" if best else "-"
            lines.append([_label(shape), *cells, peer_cell])
        headers = ["batch x context", *(f"{name}, us (x law), between" for name in formats), "best accurate peer, us"]
        blocks += [f"## {OURS} at the {grid} shapes", md.table(headers, lines)] if lines else []
    return blocks


def glance(result: KernelsResult, rows: list[KernelRow]) -> list[list[str]]:
    """A row for our kernel with an FP8 cache; none where it was not measured."""
    if not (measured := [row for row in ours(rows) if row.context >= SHORT_TOKENS]):
        return []
    ratios = quantiles([over_law(result, row) for row in measured])
    error = f"relL2 ≤ {max(row.rel_l2 for row in measured):.1e}"
    text = f"median {ratios.median:.2f}, p95 {ratios.p95:.2f}, worst {ratios.worst:.2f} of the law"
    name = f"{OURS} {QUANTISED}, {len(measured)} shapes of a server"
    return [[md.text(result.provenance.machine.name), name, error, "-", text]]


def _law_table(result: KernelsResult, measured: list[KernelRow]) -> str:
    classes = {}
    for row in measured:
        tokens = f"under {SHORT_TOKENS}" if row.context < SHORT_TOKENS else f"{SHORT_TOKENS} and more"
        classes.setdefault((row.grid, row.kv_format, tokens), []).append(row)
    lines = []
    for names, rows in sorted(classes.items()):
        cells = []
        for ratio in (over_law, between_over_law):
            values = quantiles([ratio(result, row) for row in rows])
            cells += [
                f"**{value:.2f}**" if value > bound else f"{value:.2f}"
                for value, bound in zip(values, bounds(rows[0]), strict=True)
            ]
        lines.append([*names, str(len(rows)), *cells])
    headers = ["grid", "cache", "tokens", "shapes"]
    headers += [f"{law}, {name}" for law in ("x law", "between x law") for name in ("median", "p95", "worst")]
    return md.table(headers, lines)


def _rival_table(rows: list[KernelRow]) -> list[str]:
    lines = []
    for rival in RIVALS:
        if pairs := _ratios(rows, rival):
            worst_row, worst = max(pairs, key=lambda pair: pair[1])
            cell = f"{worst:.2f} at {_label(worst_row.shape)}"
            middle = f"{median(ratio for _, ratio in pairs):.2f}"
            lines.append([f"{OURS} {rival.kv_format}", rival.name, str(len(pairs)), middle])
            lines[-1].append(f"**{cell}**" if worst > rival.max_ratio else cell)
    headers = ["", "against", "shapes", "our time / theirs, median", "worst"]
    return [md.table(headers, lines)] if lines else []


def _ratios(rows: list[KernelRow], rival: Rival) -> list[tuple[KernelRow, float]]:
    """Our measured rows where a rival was measured too, each with our time over its fastest kernel's."""
    rivals = by_shape(row for row in rows if not row.error and rival.includes(row))
    rows = [row for row in ours(rows, rival.kv_format) if row.shape in rivals]
    return [(row, row.time_us / rivals[row.shape][0].time_us) for row in rows]


def _worst_misses(title: str, misses: list[tuple[float, str]]) -> list[str]:
    """The MOST_NAMED worst misses in a line, and how many more there are; empty without misses."""
    if not misses:
        return []
    names = [f"{name} {ratio:.2f}" for ratio, name in sorted(misses, reverse=True)]
    unnamed = len(names) - MOST_NAMED
    return [f"{title} {'; '.join(names[:MOST_NAMED])}{f'; and {unnamed} more' if unnamed > 0 else ''}."]


def _cell(result: KernelsResult, row: KernelRow | None) -> str:
    if row is None or row.error:
        return "**failed**" if row else "-"
    ratio = over_law(result, row)
    text = f"{ratio:.2f}"
    time = f"{number(row.time_us)} ({f'**{text}**' if ratio > bounds(row).worst else text})"
    return f"{time}, {number(row.between_us)} ({between_over_law(result, row):.2f})"


def _label(shape: Shape) -> str:
    """The shape without what all of a server's shapes have."""
    return shape._replace(table_tokens=0, layout=LAYOUT).words
