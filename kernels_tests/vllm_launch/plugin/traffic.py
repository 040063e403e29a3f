"""Random requests against an engine in this process, some aborted at random moments; and what it holds afterwards."""

import gc
import os
from collections import Counter, deque
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import psutil

from kernels_tests.vllm_launch.plugin import answers, engines
from kernels_tests.vllm_launch.plugin.ties import Answer

IN_FLIGHT = 48  # requests, more than an engine runs at once
BURST = 8  # requests that arrive together
STEMS = 8  # texts that half of the prompts begin with
ABORTED = 4  # every fourth request is aborted
PHASES = ("waiting", "prefill", "decode", "preempted")  # in which requests are aborted
MOST_STEPS = 8  # of such a phase
STUCK_STEPS = 500  # without a request that ends


class Request(NamedTuple):
    """prompt: its index in the pool. abort: the phase and the step of it in which it is aborted, None for most."""

    prompt: int
    tokens: int
    abort: tuple[str, int] | None


class Round(NamedTuple):
    """What became of some requests. answers: of those that have finished, by index. preemptions: by index.

    aborted: how many, by what the engine was doing with them. survivors: those that it went on with.
    """

    answers: dict[int, Answer]
    aborted: Counter[str]
    preemptions: dict[int, int]
    survivors: set[int]
    steps: int


def pool(text: Sequence[int], count: int, longest: int) -> list[list[int]]:
    """Make prompts of 1 to `longest` tokens, short ones mostly; about half begin with one of a few stems."""
    random = Random("fp8-sinks soak")
    stems = [engines.excerpt(text, random.randrange(len(text)), longest) for _ in range(STEMS)]
    lengths = [1, longest, *(round(longest ** random.random()) for _ in range(count - 2))]
    prompts = []
    for length in lengths:
        shared = random.randrange(length) if random.random() < 0.5 else 0
        suffix = engines.excerpt(text, random.randrange(len(text)), length - shared)
        prompts.append(random.choice(stems)[:shared] + suffix)
    return prompts


def draw(index: int, prompts: int, tokens: int) -> Request:
    """Draw the request of that number, the same in every run. tokens: of an answer, at most."""
    random = Random(f"fp8-sinks soak {index}")
    turn, is_left = divmod(index, ABORTED)
    abort = None if is_left else (PHASES[turn % len(PHASES)], round(MOST_STEPS ** random.random()))
    return Request(random.randrange(prompts), random.randint(1, tokens), abort)


def run(llm, prompts: Sequence[list[int]], requests: dict[int, Request]) -> Round:
    """Send the requests in bursts, abort those that are to be aborted, and step until all have ended."""
    engine, scheduler = llm.llm_engine, engines.core(llm).scheduler
    random, arrivals, arrived = Random(f"fp8-sinks bursts {min(requests)}"), deque(requests), {}
    result, last_end, step = Round({}, Counter(), {}, set(), 0), 0, 0
    while arrivals or arrived:
        if random.random() < 0.3 or not arrived:
            while arrivals and len(arrived) < IN_FLIGHT and (random.random() > 1 / BURST or not arrived):
                index = arrivals.popleft()
                prompt = {"prompt_token_ids": prompts[requests[index].prompt]}
                engine.add_request(str(index), prompt, answers.greedy(requests[index].tokens))
                arrived[index] = Counter()
        for output in engine.step():
            if output.finished:
                index, last_end = int(output.request_id), step
                result.answers[index] = answers.answer_of(output)
                del arrived[index]
        # vLLM's own name of a request is ours and a random suffix.
        running = {int(name.partition("-")[0]): request for name, request in scheduler.requests.items()}
        result.preemptions.update(
            {index: request.num_preemptions for index, request in running.items() if request.num_preemptions}
        )
        result.survivors.update(running.keys() - arrived.keys())
        due = []
        for index, phases in arrived.items():
            current = phase(running.get(index))
            phases[current] += 1
            if requests[index].abort == (current, phases[current]):
                due.append(index)
                result.aborted[current] += 1
        for index in due:
            del arrived[index]
        engine.abort_request([str(index) for index in due])
        step, last_end = step + 1, step if due else last_end
        if step - last_end > STUCK_STEPS:
            raise RuntimeError(f"{len(arrived)} requests: none has ended in {STUCK_STEPS} steps")
    answers.settle(llm)
    return result._replace(steps=step)


def phase(request) -> str:
    """What the scheduler does with a request; None: no longer there."""
    if request is None:
        return "finished"
    if request.status.name == "PREEMPTED":
        return "preempted"
    if not request.num_computed_tokens:
        return "waiting"
    return "prefill" if request.num_computed_tokens < request.num_prompt_tokens else "decode"


def leftovers(llm) -> dict[str, int]:
    """What an engine without requests still holds, by where it is; nothing but zeros if it leaks nothing."""
    scheduler = engines.core(llm).scheduler
    blocks = scheduler.kv_cache_manager.block_pool
    return {
        "KV blocks": blocks.num_gpu_blocks - 1 - blocks.get_num_free_blocks(),  # block 0 is never used
        "scheduler": len(scheduler.requests) + len(scheduler.running) + len(scheduler.waiting),
        "output processor": len(llm.llm_engine.output_processor.request_states),
        "model runner": sum(llm.collective_rpc("runner_requests")),
    }


def memory(llm) -> dict[str, int]:
    """Bytes that the engine's processes hold together: RSS, and on GPUs of torch's allocators."""
    gc.collect()
    ranks = llm.collective_rpc("rank_memory")
    processes = {os.getpid(): psutil.Process().memory_info().rss} | {rank["pid"]: rank["RSS"] for rank in ranks}
    of_gpus = {key: sum(rank[key] for rank in ranks) for key in ranks[0] if key.startswith("GPU")}
    return {"RSS": sum(processes.values())} | of_gpus
