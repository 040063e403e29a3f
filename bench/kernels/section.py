"""A kernels result's part of a report: decode kernels against the memory's limit and against each other."""

from functools import partial
from pathlib import Path

from bench.kernels import tables
from bench.kernels.comparison import ACCURATE_REL_L2, LAW_SHARE, LAW_US, law_us, ours, peers_at, plain
from bench.kernels.grid import KV_FORMATS, QUANTISED
from bench.kernels.peers import OURS
from bench.kernels.result import KernelRow, KernelsResult
from bench.report import markdown as md
from bench.report import provenance
from bench.report.document import Section
from bench.report.numbers import span

MAX_SHAPES = 3  # that a line names
NOTE = (
    "Time: median of the replays of one CUDA graph, each kernel at its fastest setting; caches rotate through several"
    f" times the GPU's own cache. Law: {LAW_US:g} us + bytes / ({LAW_SHARE:g} x read ceiling). relL2: error against"
    " float64 attention over the cache as stored; bold: not accurate. vllm-fa3 with an E4M3 cache has an"
    " FP8 query, quantised before the timed call; fa2-no-sinks computes no sinks. -: not measured."
)


def section(result: KernelsResult) -> Section:
    source, table = result.provenance, tables.page_table(result)
    version = source.versions.get("flashinfer-python", "?")
    formats = [name for name in KV_FORMATS if any(row.kv_format == name for row in result.rows)]
    times = [(f"## All kernels, {name} cache: us, relL2", tables.time_table(result, name)) for name in formats]
    return Section(
        id=result.id,
        created=source.created,
        on_cpu=False,
        subject=f"Decode kernels on {source.machine.name}, FlashInfer {version}",
        page=[*([table] if table else []), _conditions(result), *failed(result)],
        not_measured=left_out(result),
        details=[*(block for pair in times for block in pair), NOTE, *provenance.details(source)],
        glance=_glance(result),
        plot_title=title(result),
        draw=partial(_draw, result) if any(row.error is None for row in result.rows) else None,
        glance_plot=True,
    )


def _conditions(result: KernelsResult) -> str:
    geometry = result.geometry
    lines = [
        f"us: microseconds a call. {geometry.query_heads} query heads over {geometry.kv_heads} KV heads of"
        f" {geometry.head_dim}, {geometry.query_format} query, pages of {geometry.page_size} tokens, "
        f"{geometry.layout}.",
        f"Read ceiling of this run {result.read_ceiling_bytes_per_s / 1e12:.2f} TB/s; floor: a call's bytes at it.",
        f"Accurate: relL2 at most {ACCURATE_REL_L2:g} against float64.",
    ]
    for name in KV_FORMATS:
        if rows := ours(result, name):
            lines.append(f"{OURS} {name}: relL2 at most {max(row.rel_l2 for row in rows):.1e}.")
    return " ".join(lines)


def title(result: KernelsResult) -> str:
    """Our kernel with an FP8 cache against all other kernels and the law, at plain shapes if there are any."""
    rows = plain(ours(result, QUANTISED))
    if not rows:
        return f"Decode kernels on {result.provenance.machine.name}: share of the read ceiling"
    return f"{OURS} {QUANTISED} on {result.provenance.machine.name}: {_speed(result, rows)}"


def _speed(result: KernelsResult, rows: list[KernelRow]) -> str:
    """Against the fastest other kernel with either cache, accurate or not, if there is any, and the law."""
    peers = {row.shape: peers_at(result, row.shape, *KV_FORMATS) for row in rows}
    ratios = [peers[row.shape][0].time_us / row.time_us for row in rows if peers[row.shape]]
    parts = [f"{span(ratios, lambda value: f'{value:.2f}x')} the fastest other kernel's speed"] if ratios else []
    met = sum(row.time_us <= law_us(row, result.read_ceiling_bytes_per_s) for row in rows)
    return "; ".join([*parts, f"within the law at {met} of {len(rows)} shapes"])


def failed(result: KernelsResult) -> list[str]:
    """A block that lists the failures, shapes of one kernel and error together; none without."""
    shapes: dict[tuple[str, str], list[str]] = {}
    for row in result.rows:
        if row.error:
            shapes.setdefault((f"{row.kernel} {row.kv_format}", row.error), []).append(row.shape.words)
    lines = []
    for (kernel, error), names in shapes.items():
        where = "; ".join(names) if len(names) <= MAX_SHAPES else f"{len(names)} shapes"
        lines.append(f"{md.text(kernel)} at {where}: {md.text(error)}")
    return [f"Failed:\n\n{md.bullets(lines)}"] if lines else []


def left_out(result: KernelsResult) -> list[str]:
    """Kernels that were not measured, at all or at some shapes, those of one reason in one line."""
    lines = []
    for reason in dict.fromkeys(entry.reason for entry in result.left_out):
        entries = [entry for entry in result.left_out if entry.reason == reason]
        shapes = {entry.shape for entry in entries if entry.shape}
        kernels = ", ".join(dict.fromkeys(entry.kernel for entry in entries))
        lines.append(f"{kernels}{f' at {len(shapes)} shapes' if shapes else ''}: {reason}")
    return lines


def _glance(result: KernelsResult) -> list[list[str]]:
    """A row for our kernel with an FP8 cache."""
    if not (rows := plain(ours(result, QUANTISED))):
        return []
    error = f"relL2 ≤ {max(row.rel_l2 for row in rows):.1e}"
    return [[md.text(result.provenance.machine.name), f"{OURS} {QUANTISED}", error, "-", _speed(result, rows)]]


def _draw(result: KernelsResult, path: Path) -> None:
    from bench.kernels import plot  # matplotlib is slow to load

    plot.kernels_plot(title(result), result, path)
