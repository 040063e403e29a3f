"""A kernels result's part of a report: decode kernels against the memory's limit and against each other."""

from functools import partial
from pathlib import Path

from bench.kernels import served
from bench.kernels.comparison import ACCURATE_REL_L2, LAW, floor_us, law_us, ours, peers_by_shape, plain
from bench.kernels.grid import INT8, KV_FORMATS, QUANTISED
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
    source, version = result.provenance, result.provenance.versions.get("flashinfer-python", "?")
    standard = [row for row in result.rows if row.grid == "standard"]
    served_rows = [row for row in result.rows if row.grid != "standard"]
    failed = [row for row in result.rows if row.error]
    failures = [(f"{row.kernel} {row.kv_format}", row.shape.words, md.text(row.error)) for row in failed]
    left_out = [(entry.kernel, entry.shape, entry.reason) for entry in result.left_out]
    by_design = md.listing("Not measured, by design:", by_reason([entry for entry in left_out if entry[1]]))
    ceiling = result.read_ceiling_bytes_per_s
    page = page_table(standard, ceiling) if standard else []
    page += served.page(result, served_rows) if served_rows else []
    conditions = " ".join([*([served.NOTE] if served_rows else []), _conditions(result)])
    times = [block for name in KV_FORMATS for block in time_table(standard, name, ceiling)]
    part = f", part {result.part}" if result.part else ""
    measured = "Decode kernels" if standard else "Decode kernels as a server calls them"
    return Section(
        id=result.id,
        source=source,
        subject=f"{measured} on {source.machine.name}, FlashInfer {version}{part}",
        page=[*page, conditions, *md.listing("Failed:", by_reason(failures))],
        not_measured=by_reason([entry for entry in left_out if entry[1] is None]),
        details=[
            *by_design,
            *times,
            *served.details(result, served_rows),
            *([NOTE] if standard else []),
        ],
        glance=[*_glance(result, standard), *served.glance(result, served_rows)],
        draw=partial(_draw, result, standard) if any(row.error is None for row in standard) else None,
        glance_plot=True,
    )


def page_table(standard: list[KernelRow], ceiling: float) -> list[str]:
    """Our kernel with an FP8 cache, at plain shapes if there are any, where another kernel was measured.

    Beside it floor, share of the ceiling, and the fastest accurate peer with either cache; the ratio is bold where
    our samples are not all faster than the peer's. A last column has our kernel with an int8 cache, if measured.
    """
    lines, rows, peers = [], plain(ours(standard)), peers_by_shape(standard)
    int8 = {row.shape: row for row in ours(standard, INT8)}
    for row in [row for row in rows if row.shape in peers] or rows:
        floor = floor_us(row, ceiling)
        peer = next((peer for peer in peers.get(row.shape, []) if peer.rel_l2 <= ACCURATE_REL_L2), None)
        cells = [row.shape.words, number(floor), number(row.time_us), f"{floor / row.time_us:.0%}"]
        cells += _peer_cells(row, peer) if peer else ["-", "-"]
        lines.append([*cells, *([_int8_cell(row, int8.get(row.shape))] if int8 else [])])
    headers = [SHAPE, "floor, us", f"{OURS} {QUANTISED}, us", "of ceiling", "best accurate peer, us", "ratio"]
    headers += [f"{OURS} {INT8}, us (/ {QUANTISED})"] if int8 else []
    return [md.table(headers, lines)] if lines else []


def _peer_cells(row: KernelRow, peer: KernelRow) -> list[str]:
    ratio, faster = f"{peer.time_us / row.time_us:.2f}x", max(row.samples_us) < min(peer.samples_us)
    name = f"{number(peer.time_us)}, {md.text(peer.kernel)} {peer.kv_format}"
    return [name, ratio if faster else f"**{ratio}, not faster**"]


def _int8_cell(row: KernelRow, int8: KernelRow | None) -> str:
    return f"{number(int8.time_us)} ({int8.time_us / row.time_us:.2f})" if int8 else "-"


def time_table(standard: list[KernelRow], kv_format: str, ceiling: float) -> list[str]:
    """All kernels with one storage format: times and errors, and our kernel against the law; no block without rows."""
    rows = {(row.shape, row.kernel): row for row in standard if row.kv_format == kv_format}
    shapes, kernels = (list(dict.fromkeys(key[index] for key in rows)) for index in (0, 1))
    lines = []
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
    geometry, rows = result.geometry, ours(result.rows)
    ceilings = span(result.part_ceilings or [result.read_ceiling_bytes_per_s], lambda value: f"{value / 1e12:.2f}")
    error = f" {OURS} {QUANTISED}: relL2 at most {max(row.rel_l2 for row in rows):.1e}." if rows else ""
    return (
        f"us: microseconds a call. {geometry.query_heads} query heads over {geometry.kv_heads} KV heads of"
        f" {geometry.head_dim}, {geometry.query_format} query, pages of {geometry.page_size} tokens, "
        f"{geometry.layout}. Read ceiling of this run {ceilings} TB/s; floor: a"
        f" call's bytes at it. Accurate: relL2 at most {ACCURATE_REL_L2:g} against float64.{error}"
    )


def speed(standard: list[KernelRow], ceiling: float) -> str | None:
    """Our kernel with an FP8 cache, at plain shapes if there are any, against the fastest other kernel and the law.

    The other kernel has either cache, accurate or not. None where ours was not measured.
    """
    if not (rows := plain(ours(standard))):
        return None
    peers = peers_by_shape(standard)
    ratios = [peers[row.shape][0].time_us / row.time_us for row in rows if row.shape in peers]
    parts = [f"{span(ratios, '{:.2f}x'.format)} the fastest other kernel's speed"] if ratios else []
    met = sum(row.time_us <= law_us(row, ceiling) for row in rows)
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


def _glance(result: KernelsResult, standard: list[KernelRow]) -> list[list[str]]:
    """A row for our kernel with an FP8 cache."""
    if not (rows := plain(ours(standard))):
        return []
    error = f"relL2 ≤ {max(row.rel_l2 for row in rows):.1e}"
    name = f"{OURS} {QUANTISED}"
    return [
        [md.text(result.provenance.machine.name), name, error, "-", speed(standard, result.read_ceiling_bytes_per_s)]
    ]


def _draw(result: KernelsResult, standard: list[KernelRow], path: Path) -> None:
    from bench.kernels.plot import kernels_plot  # matplotlib is slow to load

    ceiling, machine = result.read_ceiling_bytes_per_s, result.provenance.machine.name
    text = speed(standard, ceiling)
    title = f"{OURS} {QUANTISED} on {machine}: {text}" if text else f"Decode kernels on {machine}"
    kernels_plot(title, standard, ceiling, path)
