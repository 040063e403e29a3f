"""The tiny model in vLLM, with the backend and without: the same texts, log-probabilities compared.

    python -m kernels_tests.vllm_launch.plugin.tiny_model [--compiled] [--jobs N] [--out FOLDER] [ENGINE ...]

Prints a verdict a line; exits with 1 if one is FAIL. --compiled: vLLM's default compilation and piecewise graphs, not
none. stock-bf16 and what an engine is compared with always run.

Each engine answers 28 prompts of 5 to 12,000 tokens in chunks of 512: mixed batches, chunked prefills; some again with
their prefix cached; and scores what it has generated as a prompt.
"""

import argparse
import math
import sys
import time

from kernels_tests.vllm_launch.plugin import comparison, engines, ties
from kernels_tests.vllm_launch.plugin.comparison import Comparison, answers_of, deltas
from kernels_tests.vllm_launch.plugin.engines import ENGINES, Verdict
from kernels_tests.vllm_launch.plugin.ties import Answer, mean

LENGTHS = (5, 16, 17, 64, 100, 127, 128, 129, 130, 200, 255, 256, 257, 300, 400, 511, 512, 513, 700, 900, 1024)
LENGTHS += (1500, 2000, 3000, 4000, 6000, 9000, 12000)
TOKENS = 64
SCORED = (10, 24, 27)  # prompts whose answers are scored through prefill
PROMPTS = (20, 23)  # prompts that are scored
CACHED = (27, 3, 12, 20)  # prompts that are answered again, alone
# Mean |log p difference| of generated tokens up to the first one that differs, and of prompt tokens; measured: 0.0105
# and 0 in BF16, 0.042 and 0.076 in FP8.
BF16_BOUNDS, FP8_BOUNDS = (0.02, 0.02), (0.06, 0.10)
# On a CPU, up to 1,024 tokens: int8 0.014 and 0.007, int8-static 0.018 and 0.007, where BF16 against stock has 0.007
# and 0.014, FP8 0.041 and 0.016. FP8's prompts have 5 times that with the longer prompt of a GPU.
INT8_BOUNDS, INT8_STATIC_BOUNDS = (0.025, 0.045), (0.03, 0.045)
COMPARISONS = (
    Comparison("bf16", "stock-bf16", *BF16_BOUNDS, only_ties=True),
    Comparison("fp8", "stock-bf16", *FP8_BOUNDS, only_ties=False),
    Comparison("fp8-skip-sliding", "stock-bf16", *FP8_BOUNDS, only_ties=False),
    Comparison("bf16-eager", "bf16", *BF16_BOUNDS, only_ties=True),
    Comparison("fp8-eager", "fp8", *BF16_BOUNDS, only_ties=True),
    Comparison("fp8-ngram", "fp8", *BF16_BOUNDS, only_ties=True),
    Comparison("int8", "bf16", *INT8_BOUNDS, only_ties=True),
    Comparison("int8-skip-sliding", "bf16", *INT8_BOUNDS, only_ties=True),
    Comparison("int8-eager", "int8", *BF16_BOUNDS, only_ties=True),
    Comparison("int8-static", "bf16", *INT8_STATIC_BOUNDS, only_ties=True),
    Comparison("bf16-fa2", "bf16", *BF16_BOUNDS, only_ties=True),
    Comparison("fp8-fa2", "fp8", *BF16_BOUNDS, only_ties=True),
    Comparison("stock-bf16-tp2", "stock-bf16", *BF16_BOUNDS, only_ties=True),
    Comparison("bf16-tp2", "stock-bf16-tp2", *BF16_BOUNDS, only_ties=True),
    Comparison("fp8-tp2", "stock-bf16-tp2", *FP8_BOUNDS, only_ties=False),
    Comparison("int8-tp2", "bf16-tp2", *INT8_BOUNDS, only_ties=True),
)
# Decode against own prefill, by the largest of the scored answers; those of int8 set before the first run.
PATHS_BOUNDS = {"bf16": 0.04, "e4m3": 0.09, "int8": 0.05, "int8-static": 0.06}


def serve(arguments: argparse.Namespace) -> dict:
    """Answer everything with one engine, in this process."""
    started = time.time()
    llm = engines.start(arguments.serve, compiled=arguments.compiled)
    ready = time.time()
    from kernels_tests.vllm_launch.plugin import answers as ask

    text = engines.text_of(llm)
    prompts = [engines.excerpt(text, 997 * i, length) for i, length in enumerate(_lengths(arguments))]
    answers = ask.generate(llm, prompts, TOKENS)
    return {
        "start_s": round(ready - started, 1),
        "answers": [answer.to_json() for answer in answers],
        "cached": {i: ask.generate(llm, [prompts[i]], TOKENS)[0].to_json() for i in CACHED if i < len(prompts)},
        "prompts": {i: ask.score_tokens(llm, prompts[i]) for i in PROMPTS if i < len(prompts)},
        "paths": {
            i: ask.score_tokens(llm, prompts[i] + answers[i].tokens)[len(prompts[i]) - 1 :]
            for i in SCORED
            if i < len(prompts)
        },
        "run_s": round(time.time() - ready, 1),
    }


def _lengths(arguments: argparse.Namespace) -> list[int]:
    return [length for length in LENGTHS if length <= arguments.longest]


def is_finite(result: dict) -> bool:
    numbers = [x for key in ("prompts", "paths") for scores in result[key].values() for x in scores]
    return ties.is_finite(answers_of(result)) and all(map(math.isfinite, numbers))


def judge(arguments: argparse.Namespace, results: dict[str, dict]) -> list[Verdict]:
    """Every verdict: whether it passes, and its line."""
    verdicts = []
    for name, result in results.items():
        verdicts.append((is_finite(result), f"{name}: finite; start {result['start_s']} s, run {result['run_s']} s"))
    verdicts += comparison.verdicts(results, COMPARISONS, _lengths(arguments)) + comparison.nearer_than_stock(results)
    return verdicts + [verdict for name, result in results.items() for verdict in _own_paths(name, result)]


def _own_paths(name: str, result: dict) -> list[Verdict]:
    """Decode against the engine's own prefill, and the answers with a cached prefix."""
    answers = answers_of(result)
    means = [mean(deltas(scores, answers[int(i)].logprobs())) for i, scores in result["paths"].items()]
    bound = PATHS_BOUNDS[ENGINES[name].kv_format]
    passes = max(means, default=math.nan) <= bound or not ENGINES[name].is_ours
    figures = ", ".join(f"{value:.4f}" for value in means)
    cached = {int(i): Answer.from_json(content) for i, content in result["cached"].items()}
    parted = comparison.differences(list(cached.values()), [answers[i] for i in cached], [LENGTHS[i] for i in cached])
    are_ties, text = ties.judge(parted, ties.TIE_BOUNDS[ENGINES[name].kv_format])
    return [
        (passes, f"{name}: decode against own prefill: {figures} (<= {bound})"),
        (are_ties or not ENGINES[name].is_ours, f"{name}: of {len(cached)} answered with a cached prefix {text}"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="leave out longer prompts")
    names = [name for name in engines.SINGLE_RANK if name != "fp8-small-scratch"]
    parser.set_defaults(names=names)
    return engines.run(parser, serve, judge, always=["stock-bf16"], comparisons=COMPARISONS)


if __name__ == "__main__":
    sys.exit(main())
