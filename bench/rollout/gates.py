"""Gates: verdicts on cells, from their rows alone."""

from collections.abc import Iterator, Mapping

from bench.record import noise
from bench.rollout import intervals
from bench.rollout.intervals import Figure, Verdict, at_most, worst
from bench.rollout.process import MODES
from bench.rollout.result import Criterion, GateRow, RolloutRow
from bench.rollout.sweep import Gate

EMULATED = "emulated"
FPS, MEMORY = "FPS", "memory"  # criteria; the others are of quality


def judge(name: str, gate: Gate, rows: Mapping[str, RolloutRow]) -> GateRow:
    """The gate's verdict, the worst of its criteria's. Cells that failed or were not run leave it `not run`."""
    missing = [cell for cell in gate.cells if cell not in rows or rows[cell].error]
    if missing:
        reason = rows[missing[0]].error if missing[0] in rows else "not run"
        criteria = [Criterion(name="cells", verdict="not run", detail=f"{missing[0]}: {reason}")]
    else:
        criteria = [*_criteria(gate, rows)]
    return GateRow(gate=name, cell=gate.cell, verdict=worst(each.verdict for each in criteria), criteria=criteria)


def quality_verdict(row: RolloutRow) -> Verdict:
    """On a cell by itself: its drop from the reference, and its artefacts."""
    drops = [at_most(quality.drop, row.drop_db) for quality in row.quality.values() if quality.drop]
    return worst([*drops, artefacts(row).verdict])


def artefacts(row: RolloutRow) -> Criterion:
    counts = {
        name: sum(quality.artefacts[name] for quality in row.quality.values()) for name in ("black", "flat", "frozen")
    }
    detail = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no black, flat or frozen frame"
    return Criterion(name="artefacts", verdict="failed" if any(counts.values()) else "passed", detail=detail)


def _criteria(gate: Gate, rows: Mapping[str, RolloutRow]) -> Iterator[Criterion]:
    row, base = rows[gate.cell], rows[gate.base]
    for mode in MODES:
        drop = intervals.drop(base.quality[mode].psnr_by_clip, row.quality[mode].psnr_by_clip)
        detail = f"{written(drop)} below {gate.base}, at most {gate.drop_db:g}"
        yield Criterion(name=f"drop, {mode}", verdict=at_most(drop, gate.drop_db), detail=detail)
        if gate.stable_clips:
            yield _stable(gate, mode, base, row)
    yield artefacts(row)
    if gate.smaller_than:
        sizes = row.memory.window_bytes, rows[gate.smaller_than].memory.window_bytes
        verdict = "passed" if sizes[0] < sizes[1] else "failed"
        yield Criterion(name=MEMORY, verdict=verdict, detail=f"{sizes[0]:,} bytes, {gate.smaller_than} {sizes[1]:,}")
    if gate.fps:
        yield _speed(row, rows[gate.fps.cell], gate.fps.ratio)


def _stable(gate: Gate, mode: str, base: RolloutRow, row: RolloutRow) -> Criterion:
    ends = zip(base.quality[mode].psnr_end_by_clip, row.quality[mode].psnr_end_by_clip, strict=True)
    drops = [before - after for before, after in ends]
    stable = sum(drop <= gate.drop_db for drop in drops)
    missed = "undecided" if len(drops) < gate.stable_clips else "failed"
    detail = f"{stable} of {len(drops)} clips to the end, at least {gate.stable_clips}"
    return Criterion(name=f"stable, {mode}", verdict="passed" if stable >= gate.stable_clips else missed, detail=detail)


def _speed(row: RolloutRow, base: RolloutRow, least: float) -> Criterion:
    """FPS over the base's, whose noise is that of single frames."""
    if reason := no_speed(row) or no_speed(base):
        return Criterion(name=FPS, verdict="not decidable", detail=reason)
    if not (row.times and base.times):
        return Criterion(name=FPS, verdict="undecided", detail="every frame was cold")
    (ratio,) = noise.ratios({0: base.times.frame_ms}, {0: row.times.frame_ms}).values()
    low, high = ratio.value - ratio.noise, ratio.value + ratio.noise
    verdict = at_most(Figure(value=-ratio.value, low=-high, high=-low), -least) if high < float("inf") else "undecided"
    return Criterion(
        name=FPS,
        verdict=verdict,
        detail=f"{ratio.value:.3f} ± {ratio.noise:.3f} of {base.cell}'s, at least {least:g}",
    )


def no_speed(row: RolloutRow) -> str | None:
    """Why a cell's FPS say nothing; None where they do."""
    if row.resolved.get("mx_kernel") != EMULATED:
        return None
    return "on this GPU" if row.memory and row.memory.allocated is not None else "on a CPU"


def written(figure: Figure) -> str:
    interval = "" if figure.low is None else f" ({figure.low:.3f} to {figure.high:.3f})"
    return f"{figure.value:.3f}{interval} dB"
