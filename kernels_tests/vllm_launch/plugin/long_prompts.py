"""Prompts of 32k tokens and more, prefilled in chunks, eight at a time, in steps in which other requests decode.

    python -m kernels_tests.vllm_launch.plugin.long_prompts [--compiled] [--jobs N] [--out FOLDER] [ENGINE ...]

24 prompts of 32,768 to 130,944 tokens and 8 short ones with long answers, all at once. stock-bf16 is always run;
fp8-small-scratch merges each context out of parts, by LSE.
"""

import argparse
import sys
import time

from kernels_tests.vllm_launch.plugin import comparison, engines, ties
from kernels_tests.vllm_launch.plugin.comparison import Comparison
from kernels_tests.vllm_launch.plugin.engines import Verdict

TOKENS = 64  # of the answers to long prompts
DECODERS = 8  # short prompts, with long answers
SCORED = (0, 7)  # long prompts that are scored
AT_ONCE = 8  # long prompts in a step
BF16_BOUNDS, FP8_BOUNDS = (0.02, 0.02), (0.10, 0.14)  # as in tiny_model; at long contexts FP8 is a little further off
COMPARISONS = (
    Comparison("bf16", "stock-bf16", *BF16_BOUNDS, only_ties=True),
    Comparison("fp8", "stock-bf16", *FP8_BOUNDS, only_ties=False),
    Comparison("fp8-skip-sliding", "stock-bf16", *FP8_BOUNDS, only_ties=False),
    Comparison("fp8-small-scratch", "fp8", *BF16_BOUNDS, only_ties=True),
)


def lengths(count: int, shortest: int) -> list[int]:
    """Lengths of the long prompts: most about as long as the shortest one, the last four times as long."""
    return [shortest + 331 * i for i in range(count - 4)] + [
        shortest * 3 // 2,
        shortest * 2,
        shortest * 3,
        shortest * 4 - 2 * TOKENS,
    ]


def serve(arguments: argparse.Namespace) -> dict:
    """Answer all prompts together with one engine, in this process."""
    started = time.time()
    step_tokens = max(128, arguments.tokens // 16)
    llm = engines.start(
        arguments.serve,
        compiled=arguments.compiled,
        max_model_len=max(arguments.tokens * 4, 1024),
        max_num_batched_tokens=step_tokens,
        long_prefill_token_threshold=step_tokens // AT_ONCE,
    )
    from kernels_tests.vllm_launch.plugin import answers as ask

    ready, text = time.time(), engines.text_of(llm)
    prompts = [engines.excerpt(text, 997 * i, length) for i, length in enumerate(_all_lengths(arguments))]
    tokens = [max(TOKENS, arguments.tokens // 80)] * DECODERS + [TOKENS] * arguments.prompts
    answers = ask.generate(llm, prompts, tokens)
    answered = time.time()
    return {
        "start_s": round(ready - started, 1),
        "answer_s": round(answered - ready, 1),
        "answers": [answer.to_json() for answer in answers],
        "prompts": {i: ask.score_tokens(llm, prompts[DECODERS + i]) for i in SCORED if i < arguments.prompts},
        "score_s": round(time.time() - answered, 1),
    }


def _all_lengths(arguments: argparse.Namespace) -> list[int]:
    return [100 + 17 * i for i in range(DECODERS)] + lengths(arguments.prompts, arguments.tokens)


def judge(arguments: argparse.Namespace, results: dict[str, dict]) -> list[Verdict]:
    verdicts = []
    for name, result in results.items():
        is_finite = ties.is_finite(comparison.answers_of(result))
        times = ", ".join(f"{key.removesuffix('_s')} {result[key]} s" for key in ("start_s", "answer_s", "score_s"))
        verdicts.append((is_finite, f"{name}: finite; {times}"))
    verdicts += comparison.verdicts(results, COMPARISONS, _all_lengths(arguments))
    return verdicts + comparison.nearer_than_stock(results, margin=1.3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=24, help="long ones")
    parser.add_argument(
        "--tokens", type=int, default=32768, help="of the shortest long prompt; the longest has 4 times"
    )
    parser.set_defaults(names=["bf16", "fp8", "stock-fp8", "fp8-small-scratch"])
    return engines.run(parser, serve, judge, always=["stock-bf16"])


if __name__ == "__main__":
    sys.exit(main())
