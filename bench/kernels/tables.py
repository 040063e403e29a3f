"""Tables of a kernels result: one for the page, and the details."""

from bench.kernels.comparison import (
    ACCURATE_REL_L2,
    BASE,
    KV_FORMATS,
    QUANTISED,
    Pair,
    accurate_peer,
    excess,
    floor_us,
    law_us,
    ours,
    pairs,
    pays_from,
    peers_at,
    verdict,
)
from bench.kernels.peers import OURS
from bench.kernels.result import KernelRow, KernelsResult
from bench.report import markdown as md
from bench.report.numbers import number, span
from lowp.paged.shapes import HEAD_DIM

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
        lines.append([shape.words, floor, _law_cell(measured.get(shape), ceiling), *map(_time_cell, cells)])
    return md.table([SHAPE, "floor, us", f"{OURS} against the law", *kernels], lines)


def _law_cell(row: KernelRow | None, ceiling: float) -> str:
    if row is None:
        return "-"
    over = excess(row, ceiling)
    return f"{number(law_us(row, ceiling))} us: {'met' if over <= 0 else f'**{over:+.1%}**'}"


def _time_cell(row: KernelRow | None) -> str:
    if row is None:
        return "not measured"
    if row.error:
        return "**failed**"
    error = f"{row.rel_l2:.1e}"
    return f"{number(row.time_us)}, {f'**{error}**' if row.rel_l2 > ACCURATE_REL_L2 else error}"


def gain_table(result: KernelsResult) -> str:
    """Where an FP8 cache pays over a BF16 one through each kernel, at plain shapes; empty without such."""
    lines = []
    for kernel in dict.fromkeys(row.kernel for row in result.rows):
        if of_kernel := pairs(result, kernel):
            gains = span([base.time_us / row.time_us for row, base in of_kernel], lambda value: f"{value:.2f}x")
            slower = sum(verdict(*pair) == "slower" for pair in of_kernel)
            lines.append([md.text(kernel), gains, f"{slower} of {len(of_kernel)} shapes", _pays(of_kernel)])
    headers = ["kernel", f"{BASE} time over {QUANTISED} time", f"{QUANTISED} slower at", f"{QUANTISED} pays"]
    return md.table(headers, lines) if lines else ""


def _pays(of_kernel: list[Pair]) -> str:
    """Batches with no speedup at their longest context, and those that need more than their shortest one."""
    starts, parts = pays_from(of_kernel), []
    if never := [str(batch) for batch, start in starts.items() if start is None]:
        parts.append(f"no speedup at batch {', '.join(never)}")
    for batch, start in starts.items():
        if start and start > min(row.context for row, _ in of_kernel if row.batch == batch):
            parts.append(f"from {start:,} tokens at batch {batch}")
    return "; ".join(parts) or "at every shape"


def build_table(result: KernelsResult) -> str:
    """Seconds of the first call, a row per kernel and storage format."""
    builds: dict[str, list[str]] = {}
    for build in result.builds:
        seconds = f"**failed**: {md.text(build.error)}" if build.error else number(build.seconds)
        variant = f" (head_dim {build.head_dim})" if build.head_dim != HEAD_DIM else ""
        variant += " (window)" if build.windowed else ""
        builds.setdefault(f"{build.kernel} {build.kv_format}", []).append(f"{seconds}{variant}")
    return md.table(["kernel", "first build, s"], [[md.text(name), ", ".join(cells)] for name, cells in builds.items()])
