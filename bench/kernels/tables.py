"""Tables of a kernels result: one for the page, and the details."""

from bench.kernels.comparison import ACCURATE_REL_L2, accurate_peer, floor_us, law_us, ours, peers_at, verdict
from bench.kernels.grid import BASE, KV_FORMATS, QUANTISED
from bench.kernels.peers import OURS
from bench.kernels.result import KernelRow, KernelsResult
from bench.report import markdown as md
from bench.report.numbers import number

SHAPE = "batch x context"


def page_table(result: KernelsResult) -> str:
    """Our kernel against the floor and the fastest accurate peer, at shapes where another kernel was measured.

    With an E4M3 cache, whose peers may have a BF16 one, and beside it with BF16. Empty where ours was not measured.
    """
    rows = {name: {row.shape: row for row in ours(result, name)} for name in KV_FORMATS}
    shapes = list(dict.fromkeys([*rows[QUANTISED], *rows[BASE]]))
    shapes = [shape for shape in shapes if peers_at(result, shape, *KV_FORMATS)] or shapes
    headers = [SHAPE, f"{QUANTISED}: floor, us", f"{OURS}, us", "of ceiling", "best accurate peer, us", "ratio"]
    headers += [f"{BASE}: {OURS}, us", "of ceiling", "best accurate peer, us", "ratio"]
    lines = []
    for shape in shapes:
        quantised, base = (rows[name].get(shape) for name in KV_FORMATS)
        floor = number(floor_us(quantised, result.read_ceiling_bytes_per_s)) if quantised else "-"
        cells = [*_against_peer(result, quantised, *KV_FORMATS), *_against_peer(result, base, BASE)]
        lines.append([shape.words, floor, *cells])
    return md.table(headers, lines) if lines else ""


def _against_peer(result: KernelsResult, row: KernelRow | None, *kv_formats: str) -> list[str]:
    """Time, share of the ceiling, peer, ratio; the ratio bold where ours is not faster beyond its samples."""
    if row is None:
        return ["not measured", "-", "-", "-"]
    cells = [number(row.time_us), f"{floor_us(row, result.read_ceiling_bytes_per_s) / row.time_us:.0%}"]
    peer = accurate_peer(result, row.shape, *kv_formats)
    if peer is None:
        return [*cells, "-", "-"]
    name = f"{peer.kernel} {peer.kv_format}" if len(kv_formats) > 1 else peer.kernel
    ratio, outcome = f"{peer.time_us / row.time_us:.2f}x", verdict(row, peer)
    ratio = ratio if outcome == "faster" else f"**{ratio}, {outcome}**"
    return [*cells, f"{number(peer.time_us)}, {md.text(name)}", ratio]


def time_table(result: KernelsResult, kv_format: str) -> str:
    """All kernels with one storage format: times and errors, and our kernel against the law."""
    rows = {(row.shape, row.kernel): row for row in result.rows if row.kv_format == kv_format}
    shapes, kernels = (list(dict.fromkeys(keys)) for keys in zip(*rows, strict=True))
    ceiling, measured = result.read_ceiling_bytes_per_s, {row.shape: row for row in ours(result, kv_format)}
    lines = []
    for shape in shapes:
        cells = [rows.get((shape, kernel)) for kernel in kernels]
        floor = number(floor_us(next(filter(None, cells)), ceiling))
        over = measured[shape].time_us / law_us(measured[shape], ceiling) - 1 if shape in measured else None
        law = "-" if over is None else "met" if over <= 0 else f"**{over:+.1%}**"
        lines.append([shape.words, floor, law, *map(_time_cell, cells)])
    return md.table([SHAPE, "floor, us", f"{OURS} against the law", *kernels], lines)


def _time_cell(row: KernelRow | None) -> str:
    if row is None:
        return "-"
    if row.error:
        return "**failed**"
    error = f"{row.rel_l2:.1e}"
    return f"{number(row.time_us)}, {f'**{error}**' if row.rel_l2 > ACCURATE_REL_L2 else error}"
