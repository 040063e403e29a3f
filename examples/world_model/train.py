"""Train the world model: checkpoint, and beside it a JSON file of how it came about and whether it may judge.

    python examples/world_model/train.py --steps 20000 [--device cuda] [--resume]

Clips are drawn while training, from the seed alone. The state is saved every minute; --resume goes on from it.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from world import training
from world.checkpoint import DEFAULT, load_checkpoint, save_checkpoint
from world.config import Config
from world.files import write_json
from world.judge import measure

FOLDER = Path(__file__).resolve().parent
SAVE_SECONDS, REPORT_STEPS = 60, 50
JUDGE_SEED = 1_000_000  # of clips that no training run draws: those come from one generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--clips", type=int, default=16, help="clips of a step (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=12, help="frames of a clip (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--state", type=Path, default=Path("runs/world_model/state.pt"), help="what --resume goes on from"
    )
    parser.add_argument("--out", type=Path, default=DEFAULT, help="the checkpoint (default: the example's)")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    plan = training.Plan(options.steps, options.clips, options.frames, options.seed)
    head = commit()
    options.state.parent.mkdir(parents=True, exist_ok=True)
    try:
        run = start(options, plan)
    except ValueError as error:
        parser.error(str(error))
    seconds = train(run, options.state)
    save_checkpoint(run.model, options.out)
    judgement = measure(load_checkpoint(options.out, options.device), seed=JUDGE_SEED, device=options.device)
    provenance = {
        "plan": asdict(plan),
        "config": asdict(run.model.config),
        "parameters": sum(x.numel() for x in run.model.parameters()),
        "losses": recent(run),
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU",
        "torch": torch.__version__,
        "commit": head,
        "seconds_of_last_part": round(seconds),
        "judge": judgement,
    }
    write_json(provenance, options.out.with_suffix(".json"))
    print(json.dumps(judgement, indent=1))


def start(options: argparse.Namespace, plan: training.Plan) -> training.Run:
    """Return the run saved in the state file with --resume, else a new one."""
    if options.resume:
        if not options.state.exists():
            raise ValueError(f"{options.state} does not exist; expected the state of a run, or no --resume")
        return training.resume(options.state, Config(), plan, options.device)
    if options.state.exists():
        raise ValueError(f"{options.state} exists; expected --resume, or another --state")
    return training.start(Config(), plan, options.device)


def train(run: training.Run, state: Path) -> float:
    """Run the remaining steps; return their seconds."""
    start_time = saved = time.monotonic()
    while len(run.losses) < run.plan.steps:
        training.step(run)
        if len(run.losses) % REPORT_STEPS == 0:
            elapsed = time.monotonic() - start_time
            losses = "  ".join(f"{name} {value:.4f}" for name, value in recent(run).items())
            print(f"step {len(run.losses)}  {elapsed:.0f} s  {losses}")
            sys.stdout.flush()
        if time.monotonic() - saved > SAVE_SECONDS:
            training.save(run, state)
            saved = time.monotonic()
    training.save(run, state)
    return time.monotonic() - start_time


def recent(run: training.Run) -> dict[str, float]:
    """Return the mean of each loss over the latest steps."""
    rows = run.losses[-REPORT_STEPS:]
    return {name: sum(row[index] for row in rows) / len(rows) for index, name in enumerate(training.LOSSES)}


def commit() -> str | None:
    """Return the commit of the checkout, with a + if files are changed; None outside one."""
    try:
        head, changed = (
            subprocess.run(["git", "-C", FOLDER, *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "."))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


if __name__ == "__main__":
    main()
