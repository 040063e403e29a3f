"""Accuracy over HTTP: what a server's log-probabilities of held-out text are, and how far from another server's.

A text is a prompt and the tokens that really follow it. Decode: the server is made to generate those tokens one
by one, so every log-probability went through the decode path and its KV cache. Prefill: the same tokens at once, as
part of the prompt. The two are separate figures: a broken decode kernel shows in the first alone.
"""

import gzip
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from bench.accuracy import forced, metrics
from bench.accuracy.forced import Scored, Text
from bench.accuracy.verdicts import AccuracyRecord, Agreement, AtContext, Gate, SinkCheck, holds
from bench.record.files import writing
from bench.record.run_folder import broken_step
from bench.serving import benchy
from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Strict
from vllm_launch.model import Model
from vllm_launch.profile import AccuracyTexts, Bounds, Texts, Thresholds
from vllm_launch.server import Server

DIGITS = 5  # of a kept log-probability, nats: far below BF16 noise
END_OF_TEXT = "<|endoftext|>"  # between records of heldout.jsonl, as in training
PATHS = {"decode": "decode", "prefill": "prefill", "paths": "decode against its own prefill"}
FIGURES = {
    "mean_abs_delta": "mean |delta log p|",
    "p99_abs_delta": "p99 |delta log p|",
    "kl": "KL",
    "top1": "top-1 agreement",
    "perplexity_ratio": "perplexity ratio",
}


class AtText(Strict):
    """One text: its prompt's length, and the log-probabilities of the tokens after it."""

    context: int
    decode: Scored
    prefill: Scored | None


class Answers(Strict):
    """What one server answered to all texts, in their order."""

    source: Literal["heldout", "book"]
    at: list[AtText]


def texts(model: Model, settings: AccuracyTexts) -> list[Text]:
    """What to score, tokenised by the model's own tokenizer: the same for every profile.

    At each context the texts start at even distances over the whole source; prompts may overlap, scored tokens do
    not. Raises Problem("model") for a model without the source, Problem("profile") where the source is too short.
    """
    ids = forced.tokenize(model.path, _source(model, settings.source))
    return [one for place in settings.at for one in _cut(ids, place)]


def collect(server: Server, settings: AccuracyTexts, path: Path, say: Callable[[str], None]) -> Answers:
    """Score every text on a running server and write `path` (.json.gz); what `path` already has is read instead.

    The server needs the arguments of bench.forced.arguments. Raises Problem("requests") where it does not answer,
    Problem("file") for a damaged `path`.
    """
    if path.exists():
        return read(path)
    wanted = texts(server.plan.model, settings)
    with_prefill = {place.context for place in settings.at if place.prefill}
    decode = _scored(server, wanted, "decode", say)
    prefill = iter(_scored(server, [one for one in wanted if one.start in with_prefill], "prefill", say))
    answers = Answers(
        source=settings.source,
        at=[
            AtText(
                context=one.start,
                decode=_short(scored),
                prefill=_short(next(prefill)) if one.start in with_prefill else None,
            )
            for one, scored in zip(wanted, decode, strict=True)
        ],
    )
    _write(answers, path)
    return answers


def read(path: Path) -> Answers:
    """The answers that `collect` wrote; raises Problem("file")."""
    try:
        return Answers.model_validate_json(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, zlib.error, ValidationError) as error:
        raise broken_step(path) from error


def where_both(reference: Answers, again: Answers) -> Answers:
    """`reference` at the contexts that `again` has too."""
    contexts = {one.context for one in again.at}
    return reference.model_copy(update={"at": [one for one in reference.at if one.context in contexts]})


def judge(
    reference: Answers, candidate: Answers, thresholds: Thresholds, name: str, sinks: SinkCheck | None = None
) -> AccuracyRecord:
    """Compare a profile's answers with those of the reference profile `name`, and hold them against its bounds.

    Raises Problem("gate") if the two did not score the same tokens.
    """
    if [one.context for one in reference.at] != [one.context for one in candidate.at]:
        raise Problem("gate", f"{name} was scored on other texts", "score both profiles in one run")
    contexts = list(dict.fromkeys(one.context for one in reference.at))
    try:
        at = [
            AtContext(
                context=context,
                decode=_agreement(reference, candidate, "decode", context),
                prefill=_agreement(reference, candidate, "prefill", context),
            )
            for context in contexts
        ]
        decode, prefill = (_agreement(reference, candidate, path) for path in ("decode", "prefill"))
        both = [one for one in candidate.at if one.prefill]
        paths = metrics.agreement([one.prefill for one in both], [one.decode for one in both]) if both else None
    except ValueError as error:
        raise Problem("gate", f"cannot compare with {name}: {error}", "delete both score files; --resume") from error
    gates = [*_gates("decode", None, decode, thresholds.decode)]
    if prefill:
        gates += _gates("prefill", None, prefill, thresholds.prefill)
    if paths:
        gates += _gates("paths", None, paths, thresholds.paths)
    for one in at:
        gates += _gates("decode", one.context, one.decode, thresholds.decode_at_context)
    return AccuracyRecord(
        reference=name,
        text=reference.source,
        decode=decode,
        prefill=prefill,
        paths=paths,
        contexts=at,
        gates=gates,
        sinks=sinks,
    )


def failures(record: AccuracyRecord) -> list[str]:
    """Each gate that failed in one line of plain text, and the sink check."""
    lines = [gate_words(gate) for gate in record.failed_gates]
    if record.sinks and record.sinks.status == "FAILED":
        lines.append(f"sinks: {sink_words(record.sinks)}")
    return lines


def gate_words(gate: Gate) -> str:
    """Where, which figure, what it is and what it may be."""
    where = "all contexts" if gate.context is None else f"{gate.context:,} tokens of context"
    sense = {"top1": "at least", "perplexity_ratio": "within a factor of"}.get(gate.figure, "at most")
    bound = "not judged" if gate.bound is None else f"{sense} {gate.bound:.4g}"
    return f"{PATHS[gate.path]}, {where}: {FIGURES[gate.figure]} {gate.value:.4g}, {bound}"


def sink_words(sinks: SinkCheck) -> str:
    """The sink check in one line: distances (mean |delta log p|, nats) from transformers with each kind of sinks."""
    if sinks.reason:
        return f"{sinks.status}: {sinks.reason}"
    distances = ", ".join(f"{name} {value:.3f}" for name, value in sinks.mean_abs_delta.items())
    bounds = [f"true at most {sinks.bound:g}"] if sinks.bound else []
    bounds += [f"others at least {sinks.factor:g} times that far"] if sinks.factor else []
    return f"{sinks.status}: {distances} nats from transformers in FP32 ({'; '.join(bounds) or 'not judged'})"


def _gates(
    path: Literal["decode", "prefill", "paths"], context: int | None, found: Agreement, bounds: Bounds
) -> list[Gate]:
    gates = []
    for figure in FIGURES:
        value, bound = getattr(found, figure).value, getattr(bounds, figure)
        passed = None if bound is None else holds(figure, value, bound)
        gates.append(Gate(path=path, context=context, figure=figure, value=value, bound=bound, passed=passed))
    return gates


def _agreement(
    reference: Answers, candidate: Answers, path: Literal["decode", "prefill"], context: int | None = None
) -> Agreement | None:
    both = zip(reference.at, candidate.at, strict=True)
    pairs = [(getattr(r, path), getattr(c, path)) for r, c in both if context in (None, r.context)]
    pairs = [(r, c) for r, c in pairs if r and c]
    return metrics.agreement([r for r, _ in pairs], [c for _, c in pairs]) if pairs else None


def _source(model: Model, source: str) -> str:
    if source == "book":
        return benchy.book().decode()
    path = Path(model.path) / "heldout.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return END_OF_TEXT.join(json.loads(line)["text"] for line in lines)
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "serve the embedded model, or write `source: book` under the model's `accuracy` in the profile"
        raise Problem("model", f"cannot read held-out text from {path}: {error}", remedy) from error


def _cut(ids: list[int], place: Texts) -> list[Text]:
    length = place.context + place.tokens
    step = (len(ids) - length) // max(1, place.texts - 1)
    if step < place.tokens:
        raise Problem(
            "profile",
            f"{place.texts} texts of {place.context:,} + {place.tokens} tokens do not fit the {len(ids):,} there are",
            "ask for fewer or shorter ones under the model's `accuracy` in the profile",
        )
    return [Text(ids=ids[first : first + length], start=place.context) for first in range(0, step * place.texts, step)]


def _scored(
    server: Server, wanted: list[Text], by: Literal["decode", "prefill"], say: Callable[[str], None]
) -> list[Scored]:
    if not wanted:
        return []
    return forced.score_all(
        server, wanted, by, progress=lambda done, total: say(f"{by} log-probabilities, {done} of {total} texts")
    )


def _short(scored: Scored) -> Scored:
    return Scored(
        token_ids=scored.token_ids,
        logprobs=[round(value, DIGITS) for value in scored.logprobs],
        top=[{token: round(value, DIGITS) for token, value in top.items()} for top in scored.top],
    )


def _write(answers: Answers, path: Path) -> None:
    """Packed, whole or not at all; the same answers give the same bytes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path.parent):
        temporary.write_bytes(gzip.compress(answers.model_dump_json().encode(), mtime=0))
        temporary.replace(path)
