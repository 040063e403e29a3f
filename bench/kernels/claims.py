"""What our decode kernel must show, held against a result: each claim with whether it is met, in words."""

import math
from collections.abc import Callable
from typing import NamedTuple

from bench.kernels.gain import BASE, QUANTISED, verdict
from bench.kernels.peers import OURS
from bench.kernels.result import KernelRow, KernelsResult
from lowp.paged.shapes import LAYOUT, Shape

LAW_US, LAW_SHARE = 3.5, 0.93  # a call may take that long, beside its bytes at that share of the read ceiling
RAGGED_SLACK = 1.05  # times the law
GAIN, GAIN_BYTES = 1.8, 256_000_000  # E4M3 against BF16 where the BF16 cache is that large
REL_L2 = 2e-3
MOST_NAMED = 4  # shapes that a sentence names
ON_GRID, IN_RAGGED = "on the grid", "in ragged batches"
WITH_MORE, IN_LAYOUTS = "with a window, other heads or a wide table", "in other layouts"


class Claim(NamedTuple):
    """topic: what is claimed. met: whether it holds wherever our kernel was tried. words: where, and where not."""

    topic: str
    met: bool
    words: str


def floor_us(row: KernelRow, ceiling: float) -> float:
    """Microseconds that the bytes of a call take at the read ceiling."""
    return row.kv_bytes / ceiling * 1e6


def law_us(row: KernelRow, ceiling: float) -> float:
    """Microseconds that a call may take."""
    return LAW_US + floor_us(row, ceiling) / LAW_SHARE


def over(row: KernelRow, ceiling: float) -> float:
    """By which share of the law a call takes longer than it may; negative where it takes less."""
    return row.time_us / law_us(row, ceiling) - 1


def ours(result: KernelsResult, kv_format: str) -> list[KernelRow]:
    """Our kernel's measured rows."""
    return [row for row in result.rows if (row.kernel, row.kv_format) == (OURS, kv_format) and not row.error]


def peers_at(result: KernelsResult, row: KernelRow, kv_format: str) -> list[KernelRow]:
    """What other kernels took at a row's shape with a cache of kv_format, the fastest first."""
    found = [
        one
        for one in result.rows
        if one.kernel != OURS and one.kv_format == kv_format and not one.error and one.shape == row.shape
    ]
    return sorted(found, key=lambda one: one.time_us)


def claims(result: KernelsResult) -> list[Claim]:
    """Every claim that this result has rows for; a call of our kernel that failed meets none."""
    ceiling = result.read_ceiling_bytes_per_s
    tried = [row for row in result.rows if row.kernel == OURS]
    rows = {kv_format: [row for row in tried if row.kv_format == kv_format] for kv_format in (QUANTISED, BASE)}
    found = []
    for kv_format, of_one in rows.items():
        for where in (ON_GRID, IN_RAGGED, WITH_MORE, IN_LAYOUTS):
            slack = RAGGED_SLACK if where == IN_RAGGED else 1.0
            topic = f"{OURS} {kv_format} within {f'{slack:g}x ' if slack > 1 else ''}the law {where}"
            of_kind = [row for row in of_one if _where(row.shape) == where]
            found += _claim(topic, of_kind, lambda row, slack=slack: _law_miss(row, ceiling, slack))
    quantised, base = rows.values()
    against_all = _claim(
        f"{OURS} {QUANTISED} faster than every other kernel's FP8 and BF16",
        [row for row in quantised if peers_at(result, row, QUANTISED) or peers_at(result, row, BASE)],
        lambda row: _not_faster(result, row),
    )
    against_base = _claim(
        f"{OURS} {BASE} not slower than any other kernel's BF16",
        [row for row in base if peers_at(result, row, BASE)],
        lambda row: _slower(result, row),
    )
    found += [_but_for(one, result, (QUANTISED, BASE)) for one in against_all]
    found += [_but_for(one, result, (BASE,)) for one in against_base]
    of_base = {row.shape: row for row in base}
    large = [row for row in quantised if row.shape in of_base and of_base[row.shape].kv_bytes >= GAIN_BYTES]
    found += _claim(
        f"{OURS} {QUANTISED} at least {GAIN}x as fast as its own BF16 from {GAIN_BYTES / 1e6:.0f} MB of BF16 cache on",
        large,
        lambda row: _small_gain(of_base[row.shape], row),
    )
    found += _claim(
        f"{OURS} {QUANTISED} within relL2 {REL_L2:g}",
        quantised,
        lambda row: f"{row.rel_l2:.2e}" if row.rel_l2 > REL_L2 else None,
    )
    return found


def _where(shape: Shape) -> str:
    """Among which shapes one is judged."""
    if shape.layout != LAYOUT:
        return IN_LAYOUTS
    if shape.ragged:
        return IN_RAGGED
    return ON_GRID if shape.plain else WITH_MORE


def _claim(topic: str, rows: list[KernelRow], miss: Callable[[KernelRow], str | None]) -> list[Claim]:
    """The claim over rows, of which `miss` says how one misses it; none without rows."""
    if not rows:
        return []
    missed = [f"{row.shape.words} ({words})" for row in rows if (words := "failed" if row.error else miss(row))]
    shapes = f"{len(rows)} shape{'s' if len(rows) > 1 else ''}"
    if not missed:
        return [Claim(topic, True, f"at {'all ' if len(rows) > 1 else ''}{shapes}")]
    named = "; ".join(missed[:MOST_NAMED])
    rest = f"; and {len(missed) - MOST_NAMED} more" if len(missed) > MOST_NAMED else ""
    return [Claim(topic, False, f"at {len(missed)} of {shapes}: {named}{rest}")]


def _but_for(claim: Claim, result: KernelsResult, formats: tuple[str, ...]) -> Claim:
    """The claim, with the other kernels that failed at some shape and so were not compared there."""
    failed = [row for row in result.rows if row.kernel != OURS and row.error and row.kv_format in formats]
    names = ", ".join(dict.fromkeys(f"{row.kernel} {row.kv_format}" for row in failed))
    return claim._replace(words=f"{claim.words}; not compared where they failed: {names}") if names else claim


def _law_miss(row: KernelRow, ceiling: float, slack: float) -> str | None:
    beyond = over(row, ceiling)
    return f"{row.time_us:.1f} us, {beyond:.1%} over the law" if 1 + beyond > slack else None


def _not_faster(result: KernelsResult, row: KernelRow) -> str | None:
    others = [*peers_at(result, row, QUANTISED), *peers_at(result, row, BASE)]
    best = min(others, key=lambda one: one.time_us)
    return None if all(verdict(row, one) == "faster" for one in others) else _against(row, best)


def _slower(result: KernelsResult, row: KernelRow) -> str | None:
    others = peers_at(result, row, BASE)
    return _against(row, others[0]) if any(verdict(row, one) == "slower" for one in others) else None


def _against(row: KernelRow, other: KernelRow) -> str:
    return f"{row.time_us:.1f} us against {other.time_us:.1f} of {other.kernel} {other.kv_format}"


def _small_gain(base: KernelRow, row: KernelRow) -> str | None:
    if base.error:
        return f"{base.kv_format} failed"
    gain = base.time_us / row.time_us
    return f"{math.floor(gain * 1000) / 1000:.3f}x" if gain < GAIN else None  # rounded down: never up to GAIN
