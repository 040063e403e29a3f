"""Decode steps of a running engine: time them, or list their kernels. Knows vLLM's LLMEngine by its methods alone."""

import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import median

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from bench.engine.cells import Cell, lengths
from bench.engine.inside.connector import AssumedCache
from bench.engine.result import KernelTime

WARMUP_STEPS = 8
STEADY_STEPS = 3  # in which the same sequences decode
STUCK_STEPS = 24  # in which no further sequence starts: the cache is full
SETTLE_STEPS = 20_000
SPARE_TOKENS = 256  # a sequence may decode so many, beside the timed steps
TTFT_TOKENS = 200_000  # of prompts that are prefilled for their first token, at least MIN_TTFTS of them
MIN_TTFTS, MAX_TTFTS = 2, 4
PROFILED_STEPS = 4
NAME_CHARACTERS = 120


class CellError(Exception):
    """A cell that cannot be measured with this engine, which stays usable."""


def batch_of(cell: Cell, kv_cache, most: int, steps: int) -> int:
    """Sequences of a cell; of a full cache as many as its blocks hold. Raises CellError if they do not fit."""
    tokens, blocks = cell.context + steps + SPARE_TOKENS, 0
    for group in kv_cache.kv_cache_groups:
        spec = group.kv_cache_spec
        window = getattr(spec, "sliding_window", None)
        windowed = tokens if window is None else min(tokens, window + 2 * spec.block_size)
        blocks += -(-windowed // spec.block_size)
    fitting = (kv_cache.num_blocks - 1) // blocks
    batch = fitting if cell.batch is None else cell.batch
    if batch > fitting or not batch:
        raise CellError(f"the cache holds {fitting} sequences of {cell.context} tokens")
    if cell.batch and batch > most:
        raise CellError(f"the engine takes {most} sequences at once")
    return min(batch, most)


def prompt(index: int, tokens: int, vocabulary: int) -> dict:
    """A prompt of made-up tokens, another one for each index."""
    return {"prompt_token_ids": [(7919 * position + 104_729 * index) % vocabulary for position in range(tokens)]}


def sampling(tokens: int) -> SamplingParams:
    kind = RequestOutputKind.DELTA
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, output_kind=kind)


def first_token_s(engine, context: int, vocabulary: int) -> list[float]:
    """Seconds from a request to its first token, one request at a time, each prefilled."""
    AssumedCache.assumed, samples = False, []
    for index in range(max(MIN_TTFTS, min(MAX_TTFTS, TTFT_TOKENS // context))):
        name = f"first-{context}-{index}"
        content = prompt(index, context, vocabulary)
        synchronize(engine)
        started = time.perf_counter()
        engine.add_request(name, content, sampling(8))
        while not engine.step():
            pass
        samples.append(round(time.perf_counter() - started, 5))
        drop(engine, [name])
    return samples


@contextmanager
def decoding(engine, cell: Cell, batch: int, steps: int, vocabulary: int, prefill: bool) -> Iterator[int]:
    """Sequences of the cell that all decode; yields how many. Raises CellError if some of them do not start."""
    AssumedCache.assumed = not prefill
    names = [f"{cell}-{index}" for index in range(batch)]
    for index, (name, tokens) in enumerate(zip(names, lengths(cell, batch), strict=True)):
        engine.add_request(name, prompt(index, tokens, vocabulary), sampling(steps + SPARE_TOKENS))
    try:
        started = _settle(engine, batch)
        if cell.batch and len(started) < batch:
            raise CellError(f"{len(started)} of {batch} sequences decode at once")
        engine.abort_request(sorted(set(names) - started))
        yield len(started)
    finally:
        drop(engine, names)


def _settle(engine, batch: int) -> set[str]:
    """Step until all sequences decode together, or no more of them start; returns those that decode."""
    current, steady = set(), 0
    for _ in range(SETTLE_STEPS):
        previous, current = current, {output.request_id for output in engine.step()}
        steady = steady + 1 if current and current == previous else 0
        if steady >= (STEADY_STEPS if len(current) == batch else STUCK_STEPS):
            return current
    raise CellError(f"{len(current)} of {batch} sequences decode after {SETTLE_STEPS} steps")


def timed(engine, batch: int, steps: int) -> dict:
    """Fields of EngineRow for `steps` steps in which all sequences decode, none synchronised."""
    for _ in range(WARMUP_STEPS):
        step(engine, batch)
    gc.collect()
    gc.disable()
    try:
        synchronize(engine)
        marks = [time.perf_counter()]
        for _ in range(steps):
            outputs = step(engine, batch)
            marks.append(time.perf_counter())
        synchronize(engine)
        total_s = time.perf_counter() - marks[0]
    finally:
        gc.enable()
    samples = [round(1e3 * (end - start), 4) for start, end in pairwise(marks)]
    step_ms = median(samples)
    return {
        "batch": batch,
        "step_ms": round(step_ms, 4),
        "mean_ms": round(1e3 * total_s / steps, 4),
        "step_ms_samples": samples,
        "distinct_tokens": len({tuple(output.outputs[0].token_ids[-1:]) for output in outputs}),
        "tokens_per_s": round(1e3 * batch / step_ms, 2),
    }


def kernels(engine, batch: int) -> list[KernelTime]:
    """Kernels of a decode step on the first rank, the longest first; on a CPU torch's operators."""
    for _ in range(WARMUP_STEPS):
        step(engine, batch)
    synchronize(engine)
    engine.collective_rpc("start_kernels")
    for _ in range(PROFILED_STEPS):
        step(engine, batch)
    recorded, *_ = engine.collective_rpc("stop_kernels")
    times = [
        KernelTime(
            name=" ".join(name.split())[:NAME_CHARACTERS],
            calls=count / PROFILED_STEPS,
            us=round(us / PROFILED_STEPS, 2),
        )
        for name, count, us in recorded
    ]
    return sorted((entry for entry in times if entry.us), key=lambda entry: -entry.us)


def step(engine, batch: int) -> list:
    """One step of the engine; raises CellError unless each sequence gets a token."""
    outputs = engine.step()
    if len(outputs) != batch:
        raise CellError(f"{len(outputs)} of {batch} sequences got a token in a step")
    return outputs


def drop(engine, names: Sequence[str]) -> None:
    """Abort the requests and let steps that are under way end."""
    engine.abort_request(list(names))
    with contextlib.suppress(Exception):  # an engine that is broken shows it at the next cell
        for _ in range(STEADY_STEPS):
            engine.step()


def synchronize(engine) -> None:
    """Wait for the devices of all ranks. The calling process may have none."""
    engine.collective_rpc("wait_for_device")
