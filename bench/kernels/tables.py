"""The tables of the report's part on decode kernels, each for one question."""

from bench.kernels import claims
from bench.kernels.gain import BASE, QUANTISED
from bench.kernels.peers import OURS
from bench.kernels.result import Build, KernelRow, KernelsResult
from bench.kernels.shape import HEAD_DIM
from bench.report import markdown as md
from bench.serving import plot as plots

# What a kernel that keeps BF16 accuracy may be off, relL2; the bound of the tests in kernels_tests.
KERNEL_BOUND = 4e-3
FORMATS = (QUANTISED, BASE)
SHAPE = "batch x context"


def law_tables(result: KernelsResult) -> list[str]:
    """Is our kernel at the limit? A heading and a table for each storage format that it was measured with."""
    ceiling, blocks = result.read_ceiling_bytes_per_s, []
    for kv_format in FORMATS:
        lines = []
        for row in claims.ours(result, kv_format):
            beyond = claims.over(row, ceiling)
            lines.append(
                [
                    row.shape.words,
                    plots.number(claims.floor_us(row, ceiling)),
                    plots.number(claims.law_us(row, ceiling)),
                    plots.number(row.time_us),
                    f"{claims.floor_us(row, ceiling) / row.time_us:.0%}",
                    "met" if beyond <= 0 else f"**{beyond:+.1%}**",
                    _error(row.rel_l2),
                ]
            )
        if lines:
            headers = [SHAPE, "floor, us", "law, us", "time, us", "% of ceiling", "law", "relL2"]
            blocks += [f"### {OURS} {kv_format} against the law", LAW_NOTE, md.table(headers, lines)]
    return blocks


LAW_NOTE = (
    f"Floor: bytes over the read ceiling. Law: {claims.LAW_US} us + bytes over {claims.LAW_SHARE} of the ceiling; met,"
    " or how far over."
)


def time_tables(result: KernelsResult) -> list[str]:
    """Who is fastest? A heading and a table for each storage format: all its kernels, and the best against ours."""
    blocks = []
    for kv_format in FORMATS:
        rows = {(row.shape, row.kernel): row for row in result.rows if row.kv_format == kv_format}
        if not rows:
            continue
        shapes, kernels = (list(dict.fromkeys(keys)) for keys in zip(*rows, strict=True))
        compared = OURS in kernels and len(kernels) > 1
        lines = []
        for shape in shapes:
            if compared and not any((shape, kernel) in rows for kernel in kernels if kernel != OURS):
                continue
            floor = next(row.kv_bytes for (place, _), row in rows.items() if place == shape)
            cells = [_cell(rows.get((shape, kernel))) for kernel in kernels]
            best = [_best(result, rows.get((shape, OURS)))] if compared else []
            lines.append([shape.words, plots.number(floor / result.read_ceiling_bytes_per_s * 1e6), *cells, *best])
        headers = [SHAPE, "floor, us", *kernels, *([f"best other / {OURS}"] if compared else [])]
        blocks += [f"### All kernels, {kv_format} cache: us, relL2", md.table(headers, lines)]
    return blocks


def own_gain_table(result: KernelsResult) -> list[str]:
    """What does an FP8 cache gain with our kernel? A heading and a table."""
    base = {row.shape: row for row in claims.ours(result, BASE)}
    lines = [
        [
            row.shape.words,
            f"{base[row.shape].kv_bytes / 1e6:,.1f}",
            f"{plots.number(base[row.shape].time_us)}, {_error(base[row.shape].rel_l2)}",
            f"{plots.number(row.time_us)}, {_error(row.rel_l2)}",
            f"{base[row.shape].time_us / row.time_us:.2f}x",
        ]
        for row in claims.ours(result, QUANTISED)
        if row.shape in base
    ]
    headers = [SHAPE, "BF16 cache, MB", "BF16, us, relL2", "E4M3, us, relL2", "E4M3 is as fast"]
    return [f"### {OURS}: E4M3 against its own BF16", md.table(headers, lines)] if lines else []


def left_out_table(result: KernelsResult) -> str:
    """Which kernels were not measured where, and why; empty where all were."""
    places: dict[tuple[str, str], list[str]] = {}
    for one in result.left_out:
        places.setdefault((f"{one.kernel} {one.kv_format}", one.reason), []).append(one.shape or "all shapes")
    kernels: dict[tuple[str, str], list[str]] = {}
    for (kernel, reason), of_one in places.items():
        kernels.setdefault((", ".join(of_one), reason), []).append(kernel)
    lines = [[md.text(", ".join(names)), where, md.text(reason)] for (where, reason), names in kernels.items()]
    return md.table(["kernels", "at", "why"], lines) if lines else ""


def build_table(result: KernelsResult) -> str:
    lines = [
        [md.text(_build(one)), f"**failed**: {md.text(one.error)}" if one.error else plots.number(one.seconds)]
        for one in result.builds
    ]
    return md.table(["kernel", "compile, load and run once with an empty cache, s"], lines)


def _cell(row: KernelRow | None) -> str:
    if row is None:
        return "not measured"
    return "**failed**" if row.error else f"{plots.number(row.time_us)}, {_error(row.rel_l2)}"


def _best(result: KernelsResult, row: KernelRow | None) -> str:
    """The fastest other kernel's time over ours, with the same storage format."""
    others = claims.peers_at(result, row, row.kv_format) if row and not row.error else []
    return f"{others[0].time_us / row.time_us:.2f}x, {md.text(others[0].kernel)}" if others else ""


def _error(rel_l2: float) -> str:
    return f"**{rel_l2:.1e}**" if rel_l2 > KERNEL_BOUND else f"{rel_l2:.1e}"


def _build(build: Build) -> str:
    head_dim = f", head_dim {build.head_dim}" if build.head_dim != HEAD_DIM else ""
    return f"{build.kernel} {build.kv_format}{head_dim}{', window' if build.windowed else ''}"
