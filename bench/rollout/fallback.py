"""What a failed gate falls back to: each step of the sweep that applies is a further cell, until the gate passes."""

from collections.abc import Callable, Iterator

from bench.rollout import gates
from bench.rollout.gates import FPS, MEMORY
from bench.rollout.request import RolloutRun
from bench.rollout.result import Criterion, GateRow, Incident, RolloutRow
from bench.rollout.sweep import Fallback, Gate, Settings

Measure = Callable[..., RolloutRow]  # (run, cell, settings, drop_db, profile) -> its row

HOLDS = "passed", "not decidable"  # a gate holds where its speed alone cannot be decided


def execute(
    run: RolloutRun, judgements: list[GateRow], rows: dict[str, RolloutRow], measure: Measure
) -> list[Incident]:
    """An incident for each gate that failed; adds the rows of the cells that were run for it."""
    return [incident(run, judgement, rows, measure) for judgement in judgements if judgement.verdict == "failed"]


def incident(run: RolloutRun, judgement: GateRow, rows: dict[str, RolloutRow], measure: Measure) -> Incident:
    gate, steps = run.sweep.gates[judgement.gate], []
    failed = [each for each in judgement.criteria if each.verdict == "failed"]
    entries = run.sweep.fallbacks.get(kind_of(failed, gate), [])
    for cell, entry, settings in cells(gate, entries, rows[gate.cell].settings):
        if cell not in rows:
            rows[cell] = measure(run, cell, run.sweep.settings(gate.cell) | settings, gate.drop_db, entry.profile)
        steps.append(gates.judge(judgement.gate, gate.model_copy(update={"cell": cell}), rows))
        if steps[-1].verdict in HOLDS:
            break
    holding = [each.cell for each in steps if each.verdict in HOLDS]
    issue = "; ".join(f"{each.name}: {each.detail}" for each in failed)
    return Incident(
        gate=judgement.gate, cell=gate.cell, issue=issue, steps=steps, outcome=holding[-1] if holding else None
    )


def kind_of(failed: list[Criterion], gate: Gate) -> str | None:
    """Whose steps are run: the gate's part for quality, `speed` for FPS alone, none for memory alone."""
    names = {each.name for each in failed}
    if names - {FPS, MEMORY}:
        return gate.part
    return "speed" if FPS in names else None


def cells(gate: Gate, entries: list[Fallback], requested: Settings) -> Iterator[tuple[str, Fallback, Settings]]:
    """Name, step and changed settings of each cell to fall back to; changes add up. requested: of the gate's cell."""
    changes: Settings = {}
    name = gate.cell
    for entry in entries:
        if entry.applies(requested | changes):
            changes = changes | entry.settings
            name = f"{name}+{entry.name}"
            yield name, entry, changes
