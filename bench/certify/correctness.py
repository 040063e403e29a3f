"""The kernels against the float64 reference and the specification: single calls, and replays of CUDA graphs."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from bench.certify import cases
from bench.certify.budget import Watch
from bench.kernels.measure import message
from lowp.cache_read import cache_read
from lowp.cache_read import cases as reads
from lowp.cache_write import cache_write
from lowp.cache_write import cases as writes
from lowp.jit.launcher import captured
from lowp.paged import memory, tight
from lowp.paged.cases import Case, build
from lowp.paged.memory import moved
from lowp.paged.reference import reference
from lowp.sink_decode import make_workspace, prebuild, sink_decode
from vllm_launch.certificate import Check, CheckName

MAX_PROBLEMS = 5  # that a check records
GRAPH_DECODE = Case((2000, 17, 1000, 0) * 6, granularity="head", layout="interleaved", table_tokens=4096, poison=False)
GRAPH_LENGTHS = ((0, 2000, 16, 4000) * 6, (1,) * 24, (4096, *(64,) * 23))  # of the replays
GRAPH_WRITE = [replace(cases.WRITE, seed=seed) for seed in range(3)]  # the first is captured
GRAPH_READ = [cases.READ, replace(cases.READ, seed=1), replace(cases.READ, seed=2, ends=cases.READ.ends[::-1])]

Attempt = Callable[[], list[str]]  # returns the problems of a case


class Kernels(NamedTuple):
    """The functions that are certified, as their rooms in lowp export them."""

    decode: Callable = sink_decode
    write: Callable = cache_write
    read: Callable = cache_read


def check_calls(kernels: Kernels, device: str, watch: Watch) -> Iterator[Check]:
    """Check single calls of each kernel. Raises OutOfTime, as all checks do."""
    yield check_decode(kernels.decode, device, watch)
    yield check_write(kernels.write, device, watch)
    yield check_read(kernels.read, device, watch)


def check_decode(kernel: Callable, device: str, watch: Watch) -> Check:
    decode_cases = cases.decode_cases()
    if device != "cpu":
        _compile(decode_cases.values(), device)
    attempts = {name: partial(_decode_problems, kernel, case, device) for name, case in decode_cases.items()}
    return _check("decode", attempts, watch, "against float64 attention")


def check_write(kernel: Callable, device: str, watch: Watch) -> Check:
    calls = {name: writes.build(case) for name, case in cases.write_cases().items()}
    return _check_copies("cache_write", kernel, cache_write, calls, device, watch)


def check_read(kernel: Callable, device: str, watch: Watch) -> Check:
    calls = {name: reads.build(case) for name, case in cases.read_cases().items()}
    return _check_copies("cache_read", kernel, cache_read, calls, device, watch)


def check_graphs(kernels: Kernels, watch: Watch) -> Check:
    """Check replays of captured calls that see other content."""
    attempts = {
        "decode": partial(_decode_replays, kernels.decode, GRAPH_DECODE),
        "cache_write": partial(_copy_replays, kernels.write, cache_write, map(writes.build, GRAPH_WRITE)),
        "cache_read": partial(_copy_replays, kernels.read, cache_read, map(reads.build, GRAPH_READ)),
    }
    return _check("graph", attempts, watch, "replayed with other lengths, tables and values")


def _check_copies(
    name: CheckName, kernel: Callable, specification: Callable, calls: dict[str, dict], device: str, watch: Watch
) -> Check:
    attempts = {
        case: partial(_copy_problems, kernel, specification, arguments, device) for case, arguments in calls.items()
    }
    return _check(name, attempts, watch, "bit for bit, with all memory around")


def _check(name: CheckName, attempts: dict[str, Attempt], watch: Watch, against: str) -> Check:
    problems, failed = [], 0
    for case, attempt in attempts.items():
        watch()
        try:
            lines = attempt()
        except Exception as error:  # a kernel that does not compile, or left the GPU unusable
            lines = [message(error)]
        failed += bool(lines)
        problems += [f"{case}: {line}" for line in lines]
    detail = f"{failed} of {len(attempts)} cases wrong" if failed else f"{len(attempts)} cases"
    return Check(
        name=name,
        verdict="failed" if failed else "passed",
        detail=f"{detail} {against}",
        problems=problems[:MAX_PROBLEMS],
    )


def _compile(decode_cases: Iterable[Case], device: str) -> None:
    """Compile what the cases need, as many at once as there are CPUs; what does not compile fails in its case."""

    def attempt(case: Case) -> None:
        with suppress(Exception):
            prebuild([len(case.lengths)], **build(case, device))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(attempt, decode_cases))


def _decode_problems(kernel: Callable, case: Case, device: str) -> list[str]:
    arguments = build(case, device)
    buffers = _poisoned_outputs(arguments)
    kernel(**arguments, **buffers)
    return _output_problems(arguments, buffers)


def _decode_replays(kernel: Callable, case: Case) -> list[str]:
    arguments = build(case, "cuda")
    buffers = _poisoned_outputs(arguments)
    workspace = make_workspace(len(case.lengths), case.query_heads, case.kv_heads, case.head_dim, "cuda")
    graph = captured(partial(kernel, **arguments, **buffers, workspace=workspace))
    problems = []
    for seed, lengths in enumerate(GRAPH_LENGTHS, start=1):
        changed = build(replace(case, lengths=lengths, seed=seed), "cuda")
        changed["block_table"] %= min(len(changed["k_cache"]), len(arguments["k_cache"]))
        for name in ("q", "block_table", "seq_lens", "sinks", "k_scale", "v_scale"):
            arguments[name].copy_(changed[name])
        for buffer in buffers.values():
            buffer.fill_(math.nan)
        graph.replay()
        problems += _output_problems(arguments, buffers)
    return problems


def _poisoned_outputs(arguments: dict) -> dict[str, torch.Tensor]:
    q = arguments["q"]
    return {"out": torch.full_like(q, math.nan), "lse": torch.full(q.shape[:-1], math.nan, device=q.device)}


def _output_problems(arguments: dict, buffers: dict) -> list[str]:
    out, lse = reference(**arguments)
    return tight.problems(buffers["out"], out) + tight.lse_problems(buffers["lse"], lse)


def _copy_problems(kernel: Callable, specification: Callable, arguments: dict, device: str) -> list[str]:
    """Compare a call with the specification's on the CPU: all memory of all arguments."""
    exact, result = moved(arguments, "cpu"), moved(arguments, device)
    specification(**exact)
    kernel(**result)
    return memory.differences(exact, moved(result, "cpu"))


def _copy_replays(kernel: Callable, specification: Callable, calls: Iterable[dict]) -> list[str]:
    """Capture the first call, and replay it with the content of each that follows."""
    first, *replayed = calls
    arguments, problems = moved(first, "cuda"), []
    graph = captured(partial(kernel, **arguments))
    for changed in replayed:
        cases.with_content(arguments, changed)
        exact = moved(arguments, "cpu")
        specification(**exact)
        graph.replay()
        torch.cuda.synchronize()
        problems += memory.differences(exact, moved(arguments, "cpu"))
    return problems
