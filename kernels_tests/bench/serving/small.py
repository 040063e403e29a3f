"""`bench serving` on a grid small enough for tests with real servers."""

import sys
from pathlib import Path

RUN_S = 400  # limit of a run
GRID = """
models:
  tiny_gpt_oss:
    bench: {prompt: [256], output: [64], depth: DEPTHS, concurrency: [1], runs: 2}
    accuracy: {at: [{context: 128, texts: 16, tokens: 64}]}
"""
BENCH = [sys.executable, "-m", "fp8_sinks", "bench", "serving"]


def command(folder: Path, bases: dict[str, str], depths: list[int]) -> list[str]:
    """Write a profile into `folder` for each of `bases` (name -> profile); return the command that measures them."""
    profiles = [folder / f"{name}.yaml" for name in bases]
    for path, base in zip(profiles, bases.values(), strict=True):
        grid = GRID.replace("DEPTHS", str(depths))
        path.write_text(f"extends: {base}{grid}greedy: {{reference: {profiles[0]}}}\n")
    return [*BENCH, *map(str, profiles)]
