"""A profile's answers and how they are judged: greedy text, log-probabilities of held-out text, and the sinks.

The log-probabilities need a server with our token forcer. A forcer costs a little time in every step, so rates are
never measured on such a server.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

from bench.accuracy import forced, sink_check
from bench.accuracy import scores as accuracy
from bench.accuracy.forced import Text
from bench.accuracy.result import AccuracyResult, AccuracyRow
from bench.accuracy.verdicts import AccuracyRecord, GreedyMatch, SinkCheck
from bench.record.steps import load, step
from bench.servers import client as completion
from bench.servers import run as runs
from bench.servers.client import Answer
from bench.servers.result import Failure
from bench.servers.run import Run, doing, plan_of, said
from bench.servers.starts import row_settings, started
from vllm_launch import profile
from vllm_launch.model import Model
from vllm_launch.profile import Argument, Profile
from vllm_launch.server import Server
from vllm_launch.software import vllm_build

SCORES, AGAIN = "scores.json.gz", "scores-again.json.gz"


def forcer() -> dict[str, Argument]:
    """The vLLM arguments of a server whose answers are to be scored."""
    return forced.arguments(*vllm_build())


def greedy(run: Run, one: Profile, running: Server) -> list[Answer]:
    """The greedy answers of a running server (step greedy.json)."""
    run.say(f"{one.name}: greedy answers")
    gate = one.greedy
    with doing("greedy"):
        answers = step(
            run.folder / one.name / "greedy.json",
            list[Answer],
            lambda: [completion.greedy(running, prompt, gate.tokens) for prompt in gate.prompts],
        )
    run.done(f"{one.name}: {len(answers)} greedy answers")
    return answers


def scores(run: Run, one: Profile, running: Server, again: int | None = None) -> None:
    """The log-probabilities of a running server with the forcer, and its sinks (steps scores.json.gz, sinks.json).

    The reference profile is asked twice (AGAIN), at the first `again` of its contexts, None: all: how far it is from
    itself is the noise. Transformers computes beside the server, which keeps one core of a small machine idle.
    """
    model, folder = running.plan.model, run.folder / one.name
    settings = one.model_settings(model.name)
    bounds, at = settings.thresholds.sinks, settings.accuracy.shortest_prefill
    with doing("log-probabilities"):
        texts = [text for text in accuracy.texts(model, settings.accuracy) if text.start == at]
    obstacle = sink_check.obstacle(model, texts)
    with ThreadPoolExecutor(1) as beside:
        exact = None if obstacle else beside.submit(_exact, run, model, texts)
        with doing("log-probabilities"):
            answers = accuracy.collect(running, settings.accuracy, folder / SCORES, said(run, one))
            if profile.load(one.greedy.reference).name == one.name:
                some = settings.accuracy.model_copy(update={"at": settings.accuracy.at[:again]})
                accuracy.collect(running, some, folder / AGAIN, said(run, one))
        run.done(f"{one.name}: log-probabilities of {settings.accuracy.tokens:,} tokens, through decode and prefill")

        def check() -> SinkCheck:
            run.say(f"{one.name}: sinks against transformers")
            served = [text.prefill for text in answers.at if text.context == at]
            return sink_check.check(served, exact.result(), bounds) if exact else sink_check.not_run(obstacle, bounds)

        with doing("sinks"):
            found = step(folder / "sinks.json", SinkCheck, check)
    run.done(f"{one.name}: sinks {found.status}" + (f": {found.reason}" if found.reason else ""))


def _exact(run: Run, model: Model, texts: list[Text]) -> dict[str, list[float]]:
    """Transformers' log-probabilities, the same for every profile of a run with these texts (step transformers-*)."""
    action = partial(sink_check.of_transformers, model, texts)
    key = hashlib.sha256(repr(texts).encode()).hexdigest()[:8]
    return step(run.folder / f"transformers-{key}.json", dict[str, list[float]], action)


def answered(run: Run, one: Profile) -> bool:
    """Whether all of a profile's answers are there."""
    folder = run.folder / one.name
    return (folder / "greedy.json").exists() and scored(run, one)


def scored(run: Run, one: Profile) -> bool:
    """Whether a profile's log-probabilities and sink check are there."""
    folder = run.folder / one.name
    return all((folder / name).exists() for name in (SCORES, "sinks.json"))


def ensure_reference(run: Run, one: Profile) -> None:
    """Serve the profile that `one` is compared with, for its answers alone, if they are not there yet."""
    reference = profile.load(one.greedy.reference)
    if reference.name != one.name and not answered(run, reference):
        run.done(f"{one.name}: its answers are compared with {reference.name}'s, which is served for that first")
        try:
            answer(run, reference)
        except Exception as error:
            error.step = f"reference {reference.name}: {getattr(error, 'step', 'preparation')}"
            raise


def answer(run: Run, one: Profile) -> None:
    """Serve a profile with the forcer and take all of its answers."""
    with started(run, one, "scored", forcer()) as running:
        greedy(run, one, running)
        scores(run, one, running)


def greedy_matches(run: Run, one: Profile) -> list[GreedyMatch]:
    """The greedy answers against the reference's; none for the reference itself, and while answers are missing."""
    name = profile.load(one.greedy.reference).name
    paths = [run.folder / of / "greedy.json" for of in (one.name, name)]
    if name == one.name or not all(path.exists() for path in paths):
        return []
    own, reference = (load(path, list[Answer]) for path in paths)
    return [completion.match(a, b, name, one.greedy) for a, b in zip(own, reference, strict=True)]


def record(run: Run, one: Profile) -> AccuracyRecord | None:
    """The log-probabilities against the reference's, judged; None while they are missing.

    The first verdict on complete answers is the run's own (step verdict.json); one that differs is dated.
    """
    name = profile.load(one.greedy.reference).name
    paths = [run.folder / name / SCORES, run.folder / one.name / (AGAIN if name == one.name else SCORES)]
    if not all(path.exists() for path in paths):
        return None
    reference, own = (accuracy.read(path) for path in paths)
    if name == one.name:
        reference = accuracy.where_both(reference, own)
    thresholds = one.model_settings(plan_of(run, one).model.name).thresholds
    folder = run.folder / one.name
    if not scored(run, one):
        return accuracy.judge(reference, own, thresholds, name)
    sinks = sink_check.judged(load(folder / "sinks.json", SinkCheck), thresholds.sinks)
    judged = accuracy.judge(reference, own, thresholds, name, sinks)
    if judged == step(folder / "verdict.json", AccuracyRecord, lambda: judged):
        return judged
    return judged.model_copy(update={"judged_at": datetime.now(UTC).replace(microsecond=0)})


def failed_gates(row: AccuracyRow) -> list[str]:
    """What a profile failed, a line each; empty if nothing."""
    lines = [
        f"greedy match {one.matched} of {one.tokens} ({one.distinct} distinct) after {one.prompt!r}"
        for one in row.greedy
        if not one.passed
    ]
    if row.accuracy:
        lines += accuracy.failures(row.accuracy)
    return lines


def execute(run: Run, command: list[str]) -> AccuracyResult:
    """Take and judge the answers of run.request's profiles, without any speed. Writes and raises as a serving run."""
    return runs.execute(run, command, AccuracyResult, partial(_measure, run), partial(_row, run))


def _measure(run: Run, one: Profile) -> None:
    ensure_reference(run, one)
    if not answered(run, one):
        answer(run, one)


def _row(run: Run, one: Profile, failure: Failure | None) -> AccuracyRow:
    return AccuracyRow(
        profile=one.name,
        description=one.description,
        **row_settings(run, one),
        greedy=greedy_matches(run, one),
        accuracy=record(run, one),
        failures=[failure] if failure else [],
    )
