"""A profile's answers held against the reference profile's, by the bounds of the suite."""

from typing import Literal

from bench.accuracy import metrics
from bench.accuracy.answers import Answers
from bench.accuracy.forced import Scored
from bench.accuracy.gate_words import FIGURES
from bench.accuracy.verdicts import (
    AccuracyRecord,
    Agreement,
    AtContext,
    Gate,
    Ratio,
    RelativeGate,
    SinkCheck,
    holds,
    ratio_status,
    relative_status,
)
from bench.suite import Bounds, RelativeBounds, Thresholds
from flashinfer_patches.errors import Problem


def judge(
    reference: Answers,
    candidate: Answers,
    thresholds: Thresholds,
    name: str,
    sinks: SinkCheck | None = None,
    relative: RelativeGate | None = None,
) -> AccuracyRecord:
    """Compare a profile's answers with those of the reference profile `name`, and hold them against its bounds.

    sinks, relative: verdicts to record beside. Raises Problem("gate") if the two did not score the same tokens.
    """
    if _contexts(reference) != _contexts(candidate):
        raise Problem("gate", f"{name} was scored on other texts", "score both profiles in one run")
    contexts = list(dict.fromkeys(_contexts(reference)))
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
        relative=relative,
    )


def judge_relative(
    bounds: RelativeBounds, reference: Answers, repeated: Answers, yardstick: Answers, candidate: Answers
) -> RelativeGate:
    """Hold a profile's distance from the reference in decode against that of the profile of the bounds.

    repeated: the reference's second answers, in another order: the noise. yardstick: the answers of the profile of the
    bounds. All four are of the same texts, or nothing is judged.
    """
    compared = {"value": candidate, "yardstick": yardstick, "noise": repeated}
    if any(_contexts(answers) != _contexts(reference) for answers in compared.values()):
        return not_judged(bounds, "not all answers are of the same texts")
    distances = {name: _agreement(reference, each, "decode") for name, each in compared.items()}
    if None in distances.values():
        return not_judged(bounds, "decode was not scored")
    ratios = []
    for figure, bound in bounds.figures.items():
        values = {name: getattr(distance, figure).value for name, distance in distances.items()}
        limits = {"bound": bound, "max_noise": bounds.max_noise}
        ratios.append(Ratio(figure=figure, **values, **limits, status=ratio_status(**values, **limits)))
    status = relative_status([ratio.status for ratio in ratios])
    return RelativeGate(profile=bounds.profile, status=status, reason=None, ratios=ratios)


def not_judged(bounds: RelativeBounds, reason: str) -> RelativeGate:
    return RelativeGate(profile=bounds.profile, status="not judged", reason=reason, ratios=[])


def _contexts(answers: Answers) -> list[int]:
    return [text.context for text in answers.texts]


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
    return _compare(pairs)


def _agreement_of_paths(candidate: Answers) -> Agreement | None:
    """A server's decode against its own prefill, where it has both."""
    return _compare([(text.prefill, text.decode) for text in candidate.texts if text.prefill and text.decode])


def _compare(pairs: list[tuple[Scored, Scored]]) -> Agreement | None:
    """The agreement of pairs of reference and candidate, None without any; raises Problem("gate")."""
    if not pairs:
        return None
    try:
        return metrics.agreement(*zip(*pairs, strict=True))
    except ValueError as error:
        raise Problem("gate", f"cannot compare: {error}", "delete the score files of both; --resume") from error
