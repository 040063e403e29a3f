"""Engines compared by their answers and scores to the same prompts: figures, and verdicts on them.

A result has `answers`, as Answer.to_json, and `prompts`: log-probabilities of tokens of some prompts, by their index.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kernels_tests.vllm_launch.plugin import ties
from kernels_tests.vllm_launch.plugin.engines import ENGINES, Verdict
from kernels_tests.vllm_launch.plugin.ties import Answer, Difference, mean


class Comparison(NamedTuple):
    """Two engines, and bounds on mean |Δ log p|: of generated tokens up to the first difference, and of prompts.

    only_ties: whether their answers must not part but at ties.
    """

    candidate: str
    reference: str
    generated: float
    prompts: float
    only_ties: bool


def answers_of(result: dict) -> list[Answer]:
    return [Answer.from_json(content) for content in result["answers"]]


def deltas(candidate: Sequence[float], reference: Sequence[float]) -> list[float]:
    return [abs(a - b) for a, b in zip(candidate, reference, strict=True)]


def mean_deltas(candidate: dict, reference: dict) -> tuple[float, float]:
    """Mean |Δ log p| of generated tokens up to the first difference, and of prompts."""
    pairs = zip(answers_of(candidate), answers_of(reference), strict=True)
    generated = [delta for pair in pairs for delta in ties.distances(*pair)]
    prompts = [delta for i, logs in candidate["prompts"].items() for delta in deltas(logs, reference["prompts"][i])]
    return mean(generated), mean(prompts)


def differences(
    candidate: Sequence[Answer], reference: Sequence[Answer], lengths: Sequence[int]
) -> list[tuple[str, Difference]]:
    """Where answers part, by the length of their prompt."""
    triples = zip(candidate, reference, lengths, strict=True)
    parted = [(f"prompt of {length}", ties.first_difference(a, b)) for a, b, length in triples]
    return [(name, difference) for name, difference in parted if difference]


def verdicts(results: Mapping[str, dict], comparisons: Sequence[Comparison], lengths: Sequence[int]) -> list[Verdict]:
    """Verdicts on those comparisons whose engines have results. lengths: of the prompts."""
    compared = [entry for entry in comparisons if {entry.candidate, entry.reference} <= results.keys()]
    return [verdict for entry in compared for verdict in _of_pair(results, entry, lengths)]


def _of_pair(results: Mapping[str, dict], entry: Comparison, lengths: Sequence[int]) -> list[Verdict]:
    candidate, reference = results[entry.candidate], results[entry.reference]
    generated, prompts = mean_deltas(candidate, reference)
    figures = f"generated {generated:.4f} (<= {entry.generated}), prompts {prompts:.4f} (<= {entry.prompts})"
    name = f"{entry.candidate} against {entry.reference}"
    parted = differences(answers_of(candidate), answers_of(reference), lengths)
    are_ties, text = ties.judge(parted, ties.TIE_BOUNDS[ENGINES[entry.candidate].kv_format])
    return [
        (generated <= entry.generated and prompts <= entry.prompts, f"{name}: mean |Δ log p| {figures}"),
        (are_ties or not entry.only_ties, f"{name}: of {len(lengths)} texts {text}"),
    ]


def nearer_than_stock(results: Mapping[str, dict], margin: float = 1.1) -> list[Verdict]:
    """Whether our FP8 engine is no further from stock BF16 than stock FP8 is; empty without one of these.

    margin: times the distance of stock FP8. Some hundred tokens are compared.
    """
    if not {"fp8", "stock-fp8", "stock-bf16"} <= results.keys():
        return []
    ours, stock = (mean_deltas(results[name], results["stock-bf16"]) for name in ("fp8", "stock-fp8"))
    passes = all(a <= b * margin for a, b in zip(ours, stock, strict=True))
    figures = f"generated {ours[0]:.4f} and {stock[0]:.4f}, prompts {ours[1]:.4f} and {stock[1]:.4f}"
    return [(passes, f"fp8 no further from stock-bf16 than stock-fp8 (times {margin}): mean |Δ log p| {figures}")]
