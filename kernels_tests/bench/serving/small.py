"""`bench serving` on a grid small enough for tests with real servers."""

import sys
from pathlib import Path

from bench.accuracy.greedy import Answer
from bench.accuracy.run import GREEDY
from bench.record.steps import load
from bench.serving.result import ServingRow

RUN_S = 400  # limit of a run
SUITE = """
extends: tiny_gpt_oss
greedy: {reference: REFERENCE}
grid: {prompt: [256], output: [64], depth: DEPTHS, concurrency: [1], runs: 2}
texts: {contexts: [{context: 128, texts: 16, tokens: 64}]}
"""
BENCH = [sys.executable, "-m", "fp8_sinks", "bench", "serving"]


def command(folder: Path, bases: dict[str, str], depths: list[int]) -> list[str]:
    """Write a suite and a profile for each of `bases` (name -> profile); return the command that measures them.

    The first profile is the reference of the others.
    """
    profiles = [folder / f"{name}.yaml" for name in bases]
    for path, base in zip(profiles, bases.values(), strict=True):
        path.write_text(f"extends: {base}\n")
    suite = folder / "small.yaml"
    suite.write_text(SUITE.replace("REFERENCE", profiles[0].name).replace("DEPTHS", str(depths)))
    return [*BENCH, *map(str, profiles), "--suite", str(suite)]


def first_answer(run: Path, row: ServingRow) -> str:
    """The text of a profile's first greedy answer, from its step in the run folder."""
    return load(run / row.profile / GREEDY, list[Answer])[0].text
