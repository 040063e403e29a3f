"""Thousands of random requests against one engine: no leak, no NaN, no wrong text.

    python -m kernels_tests.vllm_launch.plugin.soak [--requests N] [--first N] [--seconds S] [--out FOLDER] [ENGINE ...]

Prompts of 1 to 6,000 tokens, half of them with shared beginnings, answers of 1 to 64; a quarter is aborted while it
waits, is prefilled or decodes; the KV cache is so small that running requests are preempted, and full of NaN at the
start. Each answer is compared with the one that the same engine gave to the same prompt alone, as far as both go; where
it parts from it by a tie, what follows is scored as a prompt: each token must be about the most likely there.

Request N is the same in every run: a run that had no time for all of them says which --first goes on.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence

import psutil

from kernels_tests.vllm_launch.plugin import engines, ties
from kernels_tests.vllm_launch.plugin.engines import ENGINES, Verdict
from kernels_tests.vllm_launch.plugin.ties import Answer, Difference, mean

# Nats: mean |Δ log p| against the answers alone up to where they part, and by how much a token after that may be less
# likely than the most likely one, but for swaps of experts.
DELTA_BOUNDS = {"bf16": 0.02, "e4m3": 0.06, "int8": 0.035, "int8-static": 0.04}
SHORTFALL_BOUNDS = {"bf16": 0.4, "e4m3": 1.5, "int8": 0.7, "int8-static": 0.9}
GROWTH_BYTES = {"RSS": 64 * 2**20, "GPU allocated": 4 * 2**20, "GPU reserved": 64 * 2**20}
PAGE = 16  # tokens of a KV block
WARM_UP = 4  # a run's first quarter
MARGIN_S = 10  # left when the last round ends
SUMMED = ("requests", "steps", "answers", "preempted", "preempted_answers", "wrong_length", "s")  # over rounds
PHASES = ("waiting", "prefill", "decode")  # in each of which some requests are aborted


def serve(arguments: argparse.Namespace) -> dict:
    """Run the requests in rounds, each until the engine is empty; saves the result after each."""
    began = psutil.Process().create_time()
    llm = engines.start(
        arguments.serve,
        compiled=arguments.compiled,
        max_model_len=((arguments.longest + arguments.tokens) // PAGE + 1) * PAGE,
        max_num_batched_tokens=max(engines.ARGUMENTS["max_num_seqs"], arguments.longest // 12),
        block_size=PAGE,
        num_gpu_blocks_override=5 * arguments.longest // (2 * PAGE),
    )
    from kernels_tests.vllm_launch.plugin import answers as ask
    from kernels_tests.vllm_launch.plugin import traffic

    ready = time.time()
    prompts = traffic.pool(engines.text_of(llm), arguments.prompts, arguments.longest)
    alone = ask.generate_alone(llm, prompts, arguments.tokens)
    times = {"start_s": round(ready - began, 1), "alone_s": round(time.time() - ready, 1)}
    result = times | {"alone_finite": ties.is_finite(alone), "rounds": []}
    scored, size, longest_s = [[] for _ in prompts], -(-arguments.requests // arguments.rounds), 0.0
    for first in range(0, arguments.requests, size):
        if (started := time.time()) + longest_s + MARGIN_S > began + arguments.seconds:
            break
        numbers = range(arguments.first + first, arguments.first + min(first + size, arguments.requests))
        requests = {number: traffic.draw(number, len(prompts), arguments.tokens) for number in numbers}
        traffic_round = traffic.run(llm, prompts, requests)
        entry = {
            "requests": len(requests),
            "steps": traffic_round.steps,
            "aborted": traffic_round.aborted,
            "preempted": sum(traffic_round.preemptions.values()),
            "preempted_answers": len(traffic_round.preemptions.keys() & traffic_round.answers.keys()),
            "leftovers": traffic.leftovers(llm) | {"aborted": len(traffic_round.survivors)},
            **compare(llm, prompts, alone, requests, traffic_round.answers, scored),
            "memory": traffic.memory(llm),
        }
        longest_s = max(longest_s, time.time() - started)
        result["rounds"].append(entry | {"s": round(time.time() - started, 1)})
        engines.save(arguments, result)
    return result


def compare(llm, prompts, alone: Sequence[Answer], requests, answers: dict[int, Answer], scored) -> dict:
    """Compare answers with those alone. scored: by prompt, the texts that were scored already."""
    differences, deltas, wrong_length = {}, [], 0
    for number, answer in answers.items():
        reference = alone[requests[number].prompt]
        wrong_length += len(answer.tokens) != requests[number].tokens
        deltas += ties.distances(answer, reference)
        if difference := ties.first_difference(answer, reference):
            differences[number] = difference
    shortfalls = {}
    for number in sorted(differences, key=lambda number: -len(answers[number].tokens)):
        tokens, prompt = answers[number].tokens, requests[number].prompt
        if not any(text[: len(tokens)] == tokens for text in scored[prompt]):
            scored[prompt].append(tokens)
            shortfalls[number] = shortfall(llm, prompts[prompt], tokens, differences[number].position + 1)
    return {
        "answers": len(answers),
        "finite": ties.is_finite(answers.values()),
        "wrong_length": wrong_length,
        "mean_delta": mean(deltas),
        "differences": differences,
        "shortfalls": shortfalls,
    }


def shortfall(llm, prompt: list[int], tokens: list[int], first: int) -> float:
    """By how much a token from `first` on is less likely than the most likely one, at most, as prefill sees it."""
    from kernels_tests.vllm_launch.plugin.answers import score

    pairs = list(zip(score(llm, prompt + tokens)[len(prompt) - 1 :], tokens, strict=True))
    return max((max(top.values()) - top[token] for top, token in pairs[first:]), default=0.0)


def judge(arguments: argparse.Namespace, results: dict[str, dict]) -> list[Verdict]:
    verdicts = []
    for name, result in results.items():
        of_engine = [*requests_verdicts(arguments, result), *text_verdicts(ENGINES[name].kv_format, result)]
        of_engine += memory_verdicts(result["rounds"])
        verdicts += [(passes, f"{name}: {line}") for passes, line in of_engine]
    return verdicts


def requests_verdicts(arguments: argparse.Namespace, result: dict) -> list[Verdict]:
    """What was run: enough of every kind?"""
    rounds = result["rounds"]
    total = {key: sum(entry[key] for entry in rounds) for key in SUMMED}
    aborted = sum((Counter(entry["aborted"]) for entry in rounds), Counter())
    counts = f"start {result['start_s']:.0f} s, {arguments.prompts} prompts alone {result['alone_s']:.0f} s, "
    counts += f"{total['requests']} requests {total['s']:.0f} s, {total['steps']} steps"
    if total["requests"] < arguments.requests:
        counts += f"; no time for more: go on with --first {arguments.first + total['requests']}"
    phases = ", ".join(f"{count} {phase}" for phase, count in sorted(aborted.items()))
    return [
        (bool(rounds), counts),
        (all(aborted[phase] for phase in PHASES), f"aborted: {phases or 'none'}"),
        (total["preempted"] > 0, f"{total['preempted']} preemptions, {total['preempted_answers']} answers after some"),
        (not total["wrong_length"], f"{total['wrong_length']} of {total['answers']} answers of a wrong length"),
    ]


def text_verdicts(kv_format: str, result: dict) -> list[Verdict]:
    """Whether the answers are those alone, up to ties; lists the largest."""
    rounds = result["rounds"]
    differences = [
        (f"request {number}", Difference(position, *map(tuple, pairs)))
        for entry in rounds
        for number, (position, *pairs) in entry["differences"].items()
    ]
    are_ties, text = ties.judge(differences, ties.TIE_BOUNDS[kv_format])
    deltas, delta_bound = [entry["mean_delta"] for entry in rounds], DELTA_BOUNDS[kv_format]
    shortfalls = [value for entry in rounds for value in entry["shortfalls"].values()]
    are_likely, behind = ties.judge_gaps(shortfalls, SHORTFALL_BOUNDS[kv_format])
    return [
        (result["alone_finite"] and all(entry["finite"] for entry in rounds), "all log-probabilities are finite"),
        (
            all(delta <= delta_bound for delta in deltas),
            f"mean |Δ log p| of a round at most {max(deltas, default=0.0):.4f} (<= {delta_bound})",
        ),
        (are_ties, f"of {sum(entry['answers'] for entry in rounds)} answers {text}"),
        (are_likely, f"{len(shortfalls)} texts scored after a tie, nats of a token behind the most likely{behind}"),
    ]


def memory_verdicts(rounds: Sequence[dict]) -> list[Verdict]:
    """What an engine without requests holds after each round; memory after the last one against the first quarter."""
    held = [entry["leftovers"] for entry in rounds if any(entry["leftovers"].values())]
    verdicts = [(not held, f"rounds after which something is still in use: {len(held)} {held[:1] or ''}")]
    warm_up = rounds[: len(rounds) // WARM_UP]
    if not warm_up:
        return [*verdicts, (False, f"memory: {len(rounds)} rounds, expected at least {WARM_UP}")]
    for key, size in rounds[-1]["memory"].items():
        grown = size - max(entry["memory"][key] for entry in warm_up)
        figures = f"{size / 2**20:.1f} MiB, grown by {grown / 2**20:.1f} (<= {GROWTH_BYTES[key] / 2**20:.0f})"
        verdicts.append((grown <= GROWTH_BYTES[key], f"{key} {figures}"))
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first request")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=300, help="different ones")
    parser.add_argument("--longest", type=int, default=6000, help="prompt, in tokens")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.set_defaults(names=["bf16", "fp8"])
    return engines.run(parser, serve, judge)


if __name__ == "__main__":
    sys.exit(main())
