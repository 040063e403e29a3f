"""A result's part of a report: gates, and the times of each point beside the roofline's prediction."""

from collections import Counter

from bench.report import markdown as md
from bench.report.document import Section
from bench.report.numbers import number
from bench.static_cache.gates import gates
from bench.static_cache.result import StaticCacheResult, StaticCacheRow
from bench.static_cache.shapes import BF16, FLOPS, HEAD_DIM, HEADS, STORAGES, window_bytes

NOTE = (
    "us: microseconds of one layer, median of the replays of a CUDA graph; layers rotate through more than the GPU's"
    f" own cache. Predicted: bytes at this run's read ceiling, or arithmetic at an assumed {FLOPS / 1e12:g} TFLOP/s."
    " relL2: worst head against fp32 attention over the dequantised cache. A frame is two attentions and a commit;"
    " rolled: the window is moved, dequantised and concatenated, as the earlier design did."
)


def section(result: StaticCacheResult) -> Section:
    judged = gates(result)
    counts = Counter(gate.verdict for gate in judged)
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    measured = [row for row in result.rows if not row.error]
    failed = [f"{_name(row)}: {row.error}" for row in result.rows if row.error]
    lines = [[*map(md.text, gate[:3]), md.verdict(gate.verdict)] for gate in judged]
    return Section(
        id=result.id,
        source=result.provenance,
        subject=f"Static cache on {result.provenance.machine.name}",
        page=[
            f"Gates: {summary}. {HEADS} heads of {HEAD_DIM}, one sequence; read ceiling"
            f" {result.read_ceiling_bytes_per_s / 1e12:.2f} TB/s.",
            md.table(["gate", "bound", "measured", "verdict"], lines),
        ],
        not_measured=failed,
        details=[*_tables(measured), NOTE],
        glance=[],
        draw=None,
    )


def _tables(rows: list[StaticCacheRow]) -> list[str]:
    """A table of attention and one of frames: a line for each measurement, by point."""
    headers = ["tokens x window", "storage", "by", "us", "predicted, us", "ratio", "predicted", "bytes", "relL2"]
    blocks = []
    for part in ("attention", "frame"):
        lines = [_cells(row, rows) for row in rows if row.part == part]
        blocks += [f"## {part.capitalize()} of one layer", md.table(headers, lines)] if lines else []
    return blocks


def _cells(row: StaticCacheRow, rows: list[StaticCacheRow]) -> list[str]:
    """ratio: the time of BF16 attention by FlexAttention, or of the rolled frame of the same storage, over this one."""
    base = next((candidate for candidate in rows if _is_base(candidate, row)), None)
    ratios = ["-", "-"]
    if base and base is not row:
        ratios = [f"{base.time_us / row.time_us:.2f}x", f"{base.predicted_us / row.predicted_us:.2f}x"]
    share = row.cache_bytes / window_bytes(STORAGES[BF16], row.window)
    figures = [number(row.time_us), number(row.predicted_us), *ratios, f"{share:.2f}x"]
    return [str(row.point), row.storage, f"{row.design}, {row.backend}", *figures, f"{row.rel_l2:.1e}"]


def _is_base(candidate: StaticCacheRow, row: StaticCacheRow) -> bool:
    if (candidate.part, candidate.point, candidate.backend) != (row.part, row.point, "flex"):
        return False
    return candidate.storage == (BF16 if row.part == "attention" else row.storage)


def _name(row: StaticCacheRow) -> str:
    return f"{row.part} {row.point}, {row.design}, {row.backend}, {row.storage}"
