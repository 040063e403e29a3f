"""A run of the rollout bench: each cell in a process of its own, then gates and what they fall back to; one result.

Its steps are files in the run's folder, one a cell, which a resumed run loads.
"""

import sys
from pathlib import Path

from bench.record import files
from bench.record.steps import load, step
from bench.rollout import fallback, gates, process, quality, right
from bench.rollout.measure import row_of
from bench.rollout.process import MODES, Mode, ProcessFailed, Task
from bench.rollout.quality import Frames
from bench.rollout.request import Origin, RolloutRun, check_unchanged, origin, settings_on
from bench.rollout.result import GateRow, LinearRow, Right, RolloutResult, RolloutRow
from bench.rollout.sweep import Settings
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing
from vllm_launch.terminal import Step

TRUTH = "truth.safetensors"
SHUFFLED = "shuffled_controls"
ORIGIN, RIGHT, LINEARS = "run_origin.json", "right_to_judge.json", "linear_layers.json"  # no names of cells


def execute(run: RolloutRun, command: list[str]) -> RolloutResult:
    """Measure what no earlier execution has, and write run.folder/result.json.

    The folder is locked by this process (run_folder.opened). A cell that fails is a row with its reason; a reference
    that fails ends the run, as does a model that may not judge: Problem.
    """
    steps, sweep = run.folder / "steps", run.sweep
    with writing(steps):
        steps.mkdir(exist_ok=True)
    cells = [Step(name, "cell", row_path(run, name)) for name in sweep.cells]
    run.show_steps([*cells, Step("linear layers", "linears", steps / LINEARS)])
    resumed = (steps / ORIGIN).exists()
    start = step(steps / ORIGIN, Origin, lambda: origin(run, command))
    if resumed:
        check_unchanged(start, origin(run, command))
    rows = {sweep.reference: step(row_path(run, sweep.reference), RolloutRow, lambda: reference_row(run))}
    judged = step(steps / RIGHT, Right, lambda: judge_right(run))
    right.check(judged, sweep.judge)
    for name, cell in sweep.cells.items():
        blocked = [gate for gate in (judge(run, each, rows) for each in cell.requires) if gate.verdict != "passed"]
        if blocked:
            rows[name] = not_run(run, name, f"not run: gate {blocked[0].gate} {blocked[0].verdict}")
        elif name not in rows:
            rows[name] = measure(run, name, sweep.settings(name), cell.drop_db or sweep.drop_db)
    judgements = [judge(run, gate, rows) for gate in sweep.gates]
    incidents = fallback.execute(run, judgements, rows, measure)
    result = RolloutResult(
        id=run.folder.name,
        provenance=start.provenance,
        sweep=sweep,
        device=run.device,
        checkpoint=start.checkpoint,
        right=judged,
        rows=[*rows.values()],
        gates=judgements,
        incidents=incidents,
        linears=linears(run),
    )
    with writing(run.folder):
        files.write(result, run.folder / "result.json")
    return result


def judge(run: RolloutRun, gate: str, rows: dict[str, RolloutRow]) -> GateRow:
    return gates.judge(gate, run.sweep.gates[gate], rows)


def row_path(run: RolloutRun, cell: str) -> Path:
    return run.folder / "steps" / f"{cell}.json"


def reference_row(run: RolloutRun) -> RolloutRow:
    """The reference's row; its frames and the clips stay in its folder. Raises Problem("server")."""
    name, sweep = run.sweep.reference, run.sweep
    try:
        roll_out(run, name, sweep.settings(name), truth=True)
        return row_of(name, sweep.drop_db, folder_of(run, name), clips(run).since(sweep.context))
    except (ProcessFailed, ValueError) as error:
        message = f"the reference {name} failed: {error}"
        raise Problem("server", message, f"see {folder_of(run, name).with_suffix('.log')}") from error


def judge_right(run: RolloutRun) -> Right:
    """Raises Problem("server")."""
    sweep = run.sweep
    try:
        roll_out(run, SHUFFLED, sweep.settings(sweep.reference), shuffled=True, modes=["teacher-forced"], speed=False)
        shuffled = quality.load(folder_of(run, SHUFFLED) / "teacher-forced.safetensors")
    except (ProcessFailed, ValueError) as error:
        remedy = f"see {folder_of(run, SHUFFLED).with_suffix('.log')}"
        raise Problem("server", f"the rollout with shuffled controls failed: {error}", remedy) from error
    judgement = right.measure(reference_frames(run)["teacher-forced"], shuffled, clips(run), sweep.context)
    drop_frames(folder_of(run, SHUFFLED))
    return judgement


def measure(run: RolloutRun, cell: str, settings: Settings, drop_db: float, profile: bool = False) -> RolloutRow:
    """Load a cell's row, or run the cell and save it; one that fails is a row with its reason."""

    def action() -> RolloutRow:
        reference = load(row_path(run, run.sweep.reference), RolloutRow)
        folder, truth = folder_of(run, cell), clips(run).since(run.sweep.context)
        try:
            roll_out(run, cell, settings, profile=profile)
            return row_of(cell, drop_db, folder, truth, reference.quality, reference_frames(run))
        except (ProcessFailed, ValueError) as error:
            run.print_line(f"{cell}: {error}")
            return RolloutRow(cell=cell, settings=settings, drop_db=drop_db, error=str(error))

    row = step(row_path(run, cell), RolloutRow, action)
    drop_frames(folder_of(run, cell))
    return row


def not_run(run: RolloutRun, cell: str, reason: str) -> RolloutRow:
    settings, drop_db = run.sweep.settings(cell), run.sweep.cells[cell].drop_db or run.sweep.drop_db
    return RolloutRow(cell=cell, settings=settings, drop_db=drop_db, error=reason)


def roll_out(run: RolloutRun, name: str, settings: Settings, **options) -> None:
    """Run the script. options: further fields of Task. Raises ProcessFailed."""
    run.status(f"{name}: rollout")
    sweep = run.sweep
    task = Task(
        checkpoint=run.request.checkpoint,
        device=run.device,
        settings=settings_on(run.family, settings),
        clips=sweep.clips,
        frames=sweep.frames,
        context=sweep.context,
        clip_seed=sweep.clip_seed,
        seed=sweep.seed,
        **options,
    )
    process.execute(Path(run.request.script), task, folder_of(run, name), run.cache)


def folder_of(run: RolloutRun, name: str) -> Path:
    return run.folder / "steps" / name


def clips(run: RolloutRun) -> Frames:
    return quality.load(folder_of(run, run.sweep.reference) / TRUTH)


def reference_frames(run: RolloutRun) -> dict[Mode, Frames]:
    return {mode: quality.load(folder_of(run, run.sweep.reference) / f"{mode}.safetensors") for mode in MODES}


def drop_frames(folder: Path) -> None:
    """Remove the frames of a finished step: its row has their quality."""
    for mode in MODES:
        (folder / f"{mode}.safetensors").unlink(missing_ok=True)


def linears(run: RolloutRun) -> list[LinearRow]:
    """Empty where their process fails: a line says why, and --resume tries again."""
    path = run.folder / "steps" / LINEARS
    if not path.exists():
        run.status("linear layers")
        command = [sys.executable, "-m", "bench.rollout.linears", str(path.resolve()), run.device]
        try:
            process.run(command, path.with_suffix(".log"), process.environment(run.cache))
        except ProcessFailed as error:
            run.print_line(f"linear layers: {error}")
            return []
    return load(path, list[LinearRow])
