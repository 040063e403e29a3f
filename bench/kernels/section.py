"""A kernels result's part of a report: decode kernels against the memory's limit and against each other."""

from functools import partial
from pathlib import Path

from bench.kernels.comparison import ACCURATE_REL_L2, LAW, floor_us, law_us, ours, peers_at, plain
from bench.kernels.grid import KV_FORMATS, QUANTISED
from bench.kernels.peers import OURS
from bench.kernels.result import KernelRow, KernelsResult
from bench.report import markdown as md
from bench.report.document import Section
from bench.report.numbers import number, span

SHAPE = "batch x context"
NOTE = (
    "Time: median of the replays of one CUDA graph, each kernel at its fastest setting; caches rotate through several"
    f" times the GPU's own cache. Law: {LAW}. relL2: error against float64 attention over the cache as stored; bold:"
    " not accurate. vllm-fa3 with an E4M3 cache has an FP8 query, quantised before the timed call; fa2-no-sinks"
    " computes no sinks. -: not measured."
)


def section(result: KernelsResult) -> Section:
    source = result.provenance
    version = source.versions.get("flashinfer-python", "?")
    failed = [row for row in result.rows if row.error]
    failures = [(f"{row.kernel} {row.kv_format}", row.shape.words, md.text(row.error)) for row in failed]
    left_out = [(entry.kernel, entry.shape, entry.reason) for entry in result.left_out]
    times = [block for name in KV_FORMATS for block in time_table(result, name)]
    return Section(
        id=result.id,
        source=source,
        subject=f"Decode kernels on {source.machine.name}, FlashInfer {version}",
        page=[*page_table(result), _conditions(result), *md.listing("Failed:", by_reason(failures))],
        not_measured=by_reason(left_out),
        details=[*times, NOTE],
        glance=_glance(result),
        draw=partial(_draw, result) if any(row.error is None for row in result.rows) else None,
        glance_plot=True,
    )


def page_table(result: KernelsResult) -> list[str]:
    """Our kernel with an FP8 cache, at shapes where another kernel was measured; no block where ours was not.

    Beside it floor, share of the ceiling, and the fastest accurate peer with either cache; the ratio is bold where
    our samples are not all faster than the peer's.
    """
    lines, rows = [], ours(result)
    for row in [row for row in rows if peers_at(result, row.shape)] or rows:
        floor = floor_us(row, result.read_ceiling_bytes_per_s)
        peer = next((peer for peer in peers_at(result, row.shape) if peer.rel_l2 <= ACCURATE_REL_L2), None)
        cells = [row.shape.words, number(floor), number(row.time_us), f"{floor / row.time_us:.0%}"]
        if peer is None:
            lines.append([*cells, "-", "-"])
            continue
        ratio, faster = f"{peer.time_us / row.time_us:.2f}x", max(row.samples_us) < min(peer.samples_us)
        cells.append(f"{number(peer.time_us)}, {md.text(peer.kernel)} {peer.kv_format}")
        lines.append([*cells, ratio if faster else f"**{ratio}, not faster**"])
    headers = [SHAPE, "floor, us", f"{OURS} {QUANTISED}, us", "of ceiling", "best accurate peer, us", "ratio"]
    return [md.table(headers, lines)] if lines else []


def time_table(result: KernelsResult, kv_format: str) -> list[str]:
    """All kernels with one storage format: times and errors, and our kernel against the law; no block without rows."""
    rows = {(row.shape, row.kernel): row for row in result.rows if row.kv_format == kv_format}
    shapes, kernels = (list(dict.fromkeys(key[index] for key in rows)) for index in (0, 1))
    ceiling, lines = result.read_ceiling_bytes_per_s, []
    for shape in shapes:
        of_shape = [rows.get((shape, kernel)) for kernel in kernels]
        floor = number(floor_us(next(filter(None, of_shape)), ceiling))
        lines.append([shape.words, floor, *(_time_cell(row, ceiling) for row in of_shape)])
    table = md.table([SHAPE, "floor, us", *kernels], lines)
    return [f"## All kernels, {kv_format} cache: us, relL2", table] if lines else []


def _time_cell(row: KernelRow | None, ceiling: float) -> str:
    if row is None or row.error:
        return "**failed**" if row else "-"
    error = f"{row.rel_l2:.1e}"
    cells = [number(row.time_us), f"**{error}**" if row.rel_l2 > ACCURATE_REL_L2 else error]
    if row.kernel == OURS:
        over = row.time_us / law_us(row, ceiling) - 1
        cells.append(f"**law {over:+.1%}**" if over > 0 else "law met")
    return ", ".join(cells)


def _conditions(result: KernelsResult) -> str:
    geometry, rows = result.geometry, ours(result)
    error = f" {OURS} {QUANTISED}: relL2 at most {max(row.rel_l2 for row in rows):.1e}." if rows else ""
    return (
        f"us: microseconds a call. {geometry.query_heads} query heads over {geometry.kv_heads} KV heads of"
        f" {geometry.head_dim}, {geometry.query_format} query, pages of {geometry.page_size} tokens, "
        f"{geometry.layout}. Read ceiling of this run {result.read_ceiling_bytes_per_s / 1e12:.2f} TB/s; floor: a"
        f" call's bytes at it. Accurate: relL2 at most {ACCURATE_REL_L2:g} against float64.{error}"
    )


def speed(result: KernelsResult) -> str | None:
    """Our kernel with an FP8 cache, at plain shapes if there are any, against the fastest other kernel and the law.

    The other kernel has either cache, accurate or not. None where ours was not measured.
    """
    if not (rows := plain(ours(result))):
        return None
    peers = {row.shape: peers_at(result, row.shape) for row in rows}
    ratios = [peers[row.shape][0].time_us / row.time_us for row in rows if peers[row.shape]]
    parts = [f"{span(ratios, '{:.2f}x'.format)} the fastest other kernel's speed"] if ratios else []
    met = sum(row.time_us <= law_us(row, result.read_ceiling_bytes_per_s) for row in rows)
    return "; ".join([*parts, f"within the law at {met} of {len(rows)} shapes"])


def by_reason(entries: list[tuple[str, str | None, str]]) -> list[str]:
    """A line for each reason: `kernel, kernel at 2 shapes: reason`. entries: kernel, shape or None for all, reason."""
    lines = []
    for reason in dict.fromkeys(entry[2] for entry in entries):
        kernels, shapes = zip(*(entry[:2] for entry in entries if entry[2] == reason), strict=True)
        names = dict.fromkeys(shape for shape in shapes if shape)
        extent = f" at {len(names)} shapes" if len(names) > 1 else "".join(f" at {name}" for name in names)
        lines.append(f"{', '.join(dict.fromkeys(kernels))}{extent}: {reason}")
    return lines


def _glance(result: KernelsResult) -> list[list[str]]:
    """A row for our kernel with an FP8 cache."""
    if not (rows := plain(ours(result))):
        return []
    error = f"relL2 ≤ {max(row.rel_l2 for row in rows):.1e}"
    return [[md.text(result.provenance.machine.name), f"{OURS} {QUANTISED}", error, "-", speed(result)]]


def _draw(result: KernelsResult, path: Path) -> None:
    from bench.kernels.plot import kernels_plot  # matplotlib is slow to load

    text, machine = speed(result), result.provenance.machine.name
    title = f"{OURS} {QUANTISED} on {machine}: {text}" if text else f"Decode kernels on {machine}"
    kernels_plot(title, result, path)
