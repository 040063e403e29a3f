"""A rollout result's part of a report: gates, quality, speed and memory of each cell."""

from functools import partial
from pathlib import Path

from bench.report import markdown as md
from bench.report.document import Section
from bench.report.numbers import number
from bench.rollout import right, tables
from bench.rollout.gates import no_speed
from bench.rollout.result import RolloutResult, RolloutRow

NOTE = (
    "Drop: PSNR to the truth of BF16's frames less that of the cell's, mean over clips with its 95% interval; an"
    " interval across a bound is undecided. Teacher-forced: each frame from the true history; free-running: from the"
    " frames before it, as are SSIM and PSNR to BF16. FPS and cache of one clip."
)
PART_NOTE = (
    "Parts of a frame over both sampling steps, and the FPS if that part took no time; of compiled cells from frames"
    f" that were not. *: {tables.GOAL_FPS} FPS would be reached."
)


def section(result: RolloutResult) -> Section:
    failed = [f"{row.cell}: {row.error}" for row in result.rows if row.error]
    details = [*tables.incident_blocks(result), "## What moves FPS", tables.part_table(result), PART_NOTE]
    details += ["## Numerics of the caches", tables.numerics_table(result)]
    details += ["## Linear layers alone", tables.linear_table(result)] if result.linears else []
    return Section(
        id=result.id,
        source=result.provenance,
        subject=f"World-model rollout on {result.provenance.machine.name}, sweep {result.sweep.name}",
        page=[
            *([tables.gate_table(result.gates)] if result.gates else []),
            tables.cell_table(result),
            *md.listing("", recommended(result)),
            f"{conditions(result)} {NOTE}",
        ],
        not_measured=[*failed, *([] if noise_floor(result) else ["noise floor: no cell differs in rounding alone"])],
        details=details,
        glance=[],
        draw=partial(_draw, result),
    )


def conditions(result: RolloutResult) -> str:
    sweep, judged = result.sweep, result.right
    psnr = ", ".join(f"{name} {figure.value:.1f}" for name, figure in judged.psnr.items())
    floor = noise_floor(result)
    noise = f" Noise floor: {floor}." if floor else ""
    running = result.row(sweep.reference).quality["free-running"].psnr.value
    copied = max(figure.value for name, figure in judged.psnr.items() if name in right.COPIES)
    drift = ", less than copied frames: drops there say little" if running < copied else ""
    return (
        f"{sweep.clips} clips of {sweep.frames} frames, {sweep.context} of them given. The model may judge: BF16 beats"
        f" copied frames by {judged.beats_db:.1f} dB and loses {judged.loses_db:.1f} dB with shuffled controls (PSNR:"
        f" {psnr.replace(right.REFERENCE, sweep.reference)} dB). Free-running it has {running:.1f} dB{drift}.{noise}"
    )


def noise_floor(result: RolloutResult) -> str | None:
    """BF16 against BF16 that is compiled, or not; None where no cell is that."""
    rows = {row.cell: row for row in tables.measured(result)}
    row, reference = rows.get(result.sweep.noise), rows[result.sweep.reference]
    if row is None or row.resolved.get("compiled") == reference.resolved.get("compiled"):
        return None
    figures = [
        f"{mode} {number(quality.alike_psnr.value)} dB to each other, drop {quality.drop.value:.3f} dB"
        for mode, quality in row.quality.items()
    ]
    return f"{row.cell} against {reference.cell}, {'; '.join(figures)}"


def recommended(result: RolloutResult) -> list[str]:
    """The fastest cell and that with the smallest cache, of those whose quality passed."""
    passed = [row for row in tables.measured(result) if row.verdict == "passed" and row.cell != result.sweep.noise]
    fast = [row for row in passed if row.times and not no_speed(row)]
    lines = []
    if fast:
        row = max(fast, key=lambda row: row.times.fps_total)
        lines.append(f"Fastest that passes: {_named(row)}, {number(row.times.fps_total)} FPS")
    if passed:
        row = min(passed, key=lambda row: row.memory.window_bytes)
        lines.append(f"Smallest cache that passes: {_named(row)}, {row.memory.window_bytes / 1024:,.0f} KiB")
    return lines


def _named(row: RolloutRow) -> str:
    return md.text(f"{row.cell} (linears {tables.linears(row)}; cache {tables.cache(row)})")


def _draw(result: RolloutResult, path: Path) -> None:
    from bench.rollout.plot import rollout_plot  # matplotlib is slow to load

    rollout_plot(result, path)
