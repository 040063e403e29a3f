"""About how long a run takes, before it starts, from assumed speeds of an H200 with gpt-oss-120b's shape."""

from bench.engine.cells import Cell
from bench.engine.request import EngineRun

START_S = {"none": (110.0, 30.0), "default": (300.0, 60.0)}  # by compilation: with empty caches, and after
CEILING_S = 15.0
STEP_S = 0.015
PREFILL_TOKENS_S = 20_000.0
TTFT_PROMPTS = 2.5
PROMPT_S = 1e-6  # a token of a prompt that is made, hashed, and not prefilled
CELL_S = 1.0


def seconds(run: EngineRun) -> float:
    """Seconds of a run that measures everything anew."""
    engines = run.engines()
    first_s, start_s = START_S[run.request.compilation]
    starts = first_s + start_s * (len(engines) - 1)
    cells = sum(cell_seconds(run, cell) for _, start in engines for cell in run.cells_of_start(start))
    profiles = 2 * (start_s + CELL_S) if run.request.profile else 0
    return CEILING_S + starts + cells + profiles


def cell_seconds(run: EngineRun, cell: Cell) -> float:
    batch = cell.batch or 64
    tokens = batch * cell.context
    prefill = tokens / PREFILL_TOKENS_S if run.request.prefill else tokens * PROMPT_S
    first = TTFT_PROMPTS * cell.context / PREFILL_TOKENS_S if batch == 1 else 0
    return CELL_S + (run.request.steps + 12) * STEP_S + prefill + first
