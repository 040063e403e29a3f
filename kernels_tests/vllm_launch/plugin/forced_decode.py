"""Log-probabilities of given tokens, decoded one by one through vLLM, against transformers in FP32 on the CPU.

    python -m kernels_tests.vllm_launch.plugin.forced_decode [--compiled] [--jobs N] [--out FOLDER] [ENGINE ...]

The token forcer makes vLLM "sample" the tokens of a text, so that each is scored by a decode step. stock-bf16 is always
run: its distance from transformers is the measure for the others.
"""

import argparse
import sys
import time

from bench.accuracy import forced, sink_check, texts
from bench.accuracy.verdicts import TRUE_SINKS
from bench.suite import ContextTexts, SinkBounds, Texts
from kernels_tests.vllm_launch.plugin import engines
from kernels_tests.vllm_launch.plugin.engines import ENGINES, Verdict
from kernels_tests.vllm_launch.plugin.ties import mean
from vllm_launch import model

CONTEXTS = (
    ContextTexts(context=128, texts=16, tokens=128),
    ContextTexts(context=1200, texts=2, tokens=256),
)
# Nats: bench/suites/tiny_gpt_oss.yaml has them, with what was measured.
SINK_BOUNDS = {
    "bf16": SinkBounds(mean_abs_delta=0.1, factor=4),
    "e4m3": SinkBounds(mean_abs_delta=0.135, factor=3),
    "int8": SinkBounds(mean_abs_delta=0.1, factor=4),
    "int8-static": SinkBounds(mean_abs_delta=0.1, factor=4),
}
STOCK = {"bf16": "stock-bf16", "e4m3": "stock-fp8", "int8": "stock-fp8", "int8-static": "stock-fp8"}
MARGIN = 1.15  # times stock vLLM's distance, at most


def texts_of(entry: ContextTexts) -> list[texts.Text]:
    """The texts of a context: tokens, and where those start that are scored."""
    return texts.texts_of(model.find(str(engines.MODEL)), Texts(source="heldout", contexts=[entry]))


def serve(arguments: argparse.Namespace) -> dict:
    """Score every text with one engine, in this process: log-probabilities, by context."""
    import vllm

    started = time.time()
    forcer = forced.arguments(engines.device(), vllm.__version__)["logits-processors"]
    llm = engines.start(arguments.serve, compiled=arguments.compiled, logits_processors=[forcer])
    ready = time.time()
    scores = {entry.context: [value for text in score(llm, texts_of(entry)) for value in text] for entry in CONTEXTS}
    return {"start_s": round(ready - started, 1), "run_s": round(time.time() - ready, 1), "scores": scores}


def score(llm, scored: list[texts.Text]) -> list[list[float]]:
    """Decode the texts together; the token before the first scored one is forced too, since prefill gives it."""
    from kernels_tests.vllm_launch.plugin.answers import answer_of, greedy
    from vllm_launch.plugin.forcer import FIELD

    tails = [text.ids[text.start - 1 :] for text in scored]
    inputs = [{"prompt_token_ids": text.ids[: text.start - 1]} for text in scored]
    sampling = [greedy(len(ids), extra_args={FIELD: ids}, logit_bias={max(ids): 0}) for ids in tails]
    answers = [answer_of(output) for output in llm.generate(inputs, sampling, use_tqdm=False)]
    if [answer.tokens for answer in answers] != tails:
        raise RuntimeError("the engine decoded other tokens than the forced ones")
    return [answer.logprobs()[1:] for answer in answers]


def judge(arguments: argparse.Namespace, results: dict[str, dict]) -> list[Verdict]:
    described, verdicts = model.find(str(engines.MODEL)), []
    for name, result in results.items():
        verdicts.append((True, f"{name}: start {result['start_s']} s, run {result['run_s']} s"))
    for entry in CONTEXTS:
        exact = sink_check.of_transformers(described, texts_of(entry))
        distances = {
            name: {sinks: _distance(result["scores"][str(entry.context)], values) for sinks, values in exact.items()}
            for name, result in results.items()
        }
        for name in results:
            verdicts += of_engine(name, entry.context, distances)
    return verdicts


def _distance(scores: list[float], expected: list[float]) -> float:
    return mean([abs(a - b) for a, b in zip(scores, expected, strict=True)])


def of_engine(name: str, context: int, distances: dict[str, dict[str, float]]) -> list[Verdict]:
    """Near enough to the true sinks, far enough from wrong ones, and no further than stock vLLM."""
    kv_format = ENGINES[name].kv_format
    check = sink_check.verdict(distances[name], 1, SINK_BOUNDS[kv_format])
    near, far = distances[name][TRUE_SINKS], min(v for k, v in distances[name].items() if k != TRUE_SINKS)
    title = f"{name} after {context} tokens against transformers: mean |Δ log p| {near:.4f}"
    verdicts = [(check.status == "passed", f"{title} (<= {check.bound}); nearest wrong sinks {far:.3f}")]
    stock = STOCK[kv_format]
    if ENGINES[name].is_ours and stock in distances:
        bound = MARGIN * distances[stock][TRUE_SINKS]
        verdicts.append((near <= bound, f"{title}, {stock} {distances[stock][TRUE_SINKS]:.4f} (<= {bound:.4f})"))
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(names=["bf16", "fp8", "stock-fp8", "fp8-skip-sliding", "int8", "int8-static"])
    return engines.run(parser, serve, judge, always=["stock-bf16"])


if __name__ == "__main__":
    sys.exit(main())
