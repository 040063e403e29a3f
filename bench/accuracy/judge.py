"""A profile's answers held against the reference profile's, by the bounds of the suite."""

from typing import Literal

from bench.accuracy import metrics
from bench.accuracy.answers import Answers
from bench.accuracy.gate_words import FIGURES
from bench.accuracy.verdicts import AccuracyRecord, Agreement, AtContext, Gate, SinkCheck, holds
from bench.suite import Bounds, Thresholds
from flashinfer_patches.errors import Problem


def judge(
    reference: Answers, candidate: Answers, thresholds: Thresholds, name: str, sinks: SinkCheck | None = None
) -> AccuracyRecord:
    """Compare a profile's answers with those of the reference profile `name`, and hold them against its bounds.

    Raises Problem("gate") if the two did not score the same tokens.
    """
    if [text.context for text in reference.texts] != [text.context for text in candidate.texts]:
        raise Problem("gate", f"{name} was scored on other texts", "score both profiles in one run")
    contexts = list(dict.fromkeys(text.context for text in reference.texts))
    try:
        at_contexts = [
            AtContext(
                context=context,
                decode=_agreement(reference, candidate, "decode", context),
                prefill=_agreement(reference, candidate, "prefill", context),
            )
            for context in contexts
        ]
        decode, prefill = (_agreement(reference, candidate, path) for path in ("decode", "prefill"))
        paths = _agreement_of_paths(candidate)
    except ValueError as error:
        raise Problem("gate", f"cannot compare with {name}: {error}", "delete both score files; --resume") from error
    gates = _gates("decode", None, decode, thresholds.decode)
    gates += _gates("prefill", None, prefill, thresholds.prefill)
    gates += _gates("paths", None, paths, thresholds.paths)
    for entry in at_contexts:
        gates += _gates("decode", entry.context, entry.decode, thresholds.decode_at_context)
    return AccuracyRecord(
        reference=name,
        text=reference.source,
        decode=decode,
        prefill=prefill,
        paths=paths,
        contexts=at_contexts,
        gates=gates,
        sinks=sinks,
    )


def _gates(
    path: Literal["decode", "prefill", "paths"], context: int | None, agreement: Agreement | None, bounds: Bounds
) -> list[Gate]:
    """A gate for each figure of an agreement; none where it was not measured."""
    gates = []
    for figure in FIGURES if agreement else ():
        value, bound = getattr(agreement, figure).value, getattr(bounds, figure)
        passed = None if bound is None else holds(figure, value, bound)
        gates.append(Gate(path=path, context=context, figure=figure, value=value, bound=bound, passed=passed))
    return gates


def _agreement(
    reference: Answers, candidate: Answers, path: Literal["decode", "prefill"], context: int | None = None
) -> Agreement | None:
    """Over the texts of one context, or all; None where neither was scored by this path."""
    texts = zip(reference.texts, candidate.texts, strict=True)
    pairs = [(getattr(ref, path), getattr(cand, path)) for ref, cand in texts if context in (None, ref.context)]
    pairs = [(ref, cand) for ref, cand in pairs if ref and cand]
    return metrics.agreement([ref for ref, _ in pairs], [cand for _, cand in pairs]) if pairs else None


def _agreement_of_paths(candidate: Answers) -> Agreement | None:
    """A server's decode against its own prefill, where it has both."""
    texts = [text for text in candidate.texts if text.prefill and text.decode]
    return metrics.agreement([text.prefill for text in texts], [text.decode for text in texts]) if texts else None
