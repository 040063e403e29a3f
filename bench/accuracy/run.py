"""An accuracy run: each profile's greedy text, log-probabilities and sinks, judged against the reference's.

The log-probabilities need a server with our token forcer. A forcer costs a little time in every step, so rates are
never measured on such a server.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from bench.accuracy import answers, forced, greedy, sink_check
from bench.accuracy.answers import Answers
from bench.accuracy.forced import ScoredPath
from bench.accuracy.greedy import Answer
from bench.accuracy.judge import judge, judge_relative, not_judged
from bench.accuracy.result import AccuracyResult, AccuracyRow
from bench.accuracy.texts import Text, texts_of
from bench.accuracy.verdicts import AccuracyRecord, GreedyMatch, RelativeGate, SinkCheck
from bench.record.steps import load, step
from bench.servers import run as runs
from bench.servers.client import Endpoint
from bench.servers.result import FailedStep
from bench.servers.run import Entry, Run, in_step
from bench.servers.starts import row_settings, serve, status_of
from flashinfer_patches.errors import Problem
from vllm_launch.model import Model
from vllm_launch.profile import Argument
from vllm_launch.software import vllm_build
from vllm_launch.terminal import Step

GREEDY, GREEDY_REPEATED = "greedy.json", "greedy-again.json"
SCORES, REPEATED, SINKS = "scores.json.gz", "scores-again.json.gz", "sinks.json"


def execute(run: Run, command: list[str]) -> AccuracyResult:
    """Take and judge the answers of a run's profiles, without any speed. Writes and raises as runs.measure_entries."""
    run.show_steps([each for entry in run.in_order() for each in answer_steps(run, entry)])
    return runs.measure_entries(run, command, AccuracyResult, partial(_measure, run), partial(_row, run))


def answer_steps(run: Run, entry: Entry) -> list[Step]:
    """The steps of a profile that is served for its answers alone."""
    return [scored_start(entry), *greedy_steps(run, entry), *score_steps(run, entry)]


def greedy_steps(run: Run, entry: Entry) -> list[Step]:
    names = {GREEDY: "greedy answers", GREEDY_REPEATED: "repeated greedy answers"}
    return [entry.step(names[path.name], path.name) for path in greedy_paths(run, entry)]


def scored_start(entry: Entry) -> Step:
    return entry.step("scored start", "scored.json")


def score_steps(run: Run, entry: Entry) -> list[Step]:
    """The steps of score()."""
    steps = [entry.step("log-probabilities", SCORES)]
    if run.is_reference(entry):
        steps.append(entry.step("repeated log-probabilities", REPEATED))
    return [*steps, entry.step("sinks", SINKS)]


def forcer() -> dict[str, Argument]:
    """The vLLM arguments of a server whose answers are to be scored."""
    return forced.arguments(*vllm_build())


def ask_greedy(run: Run, entry: Entry, endpoint: Endpoint) -> None:
    """Take the greedy answers of a running server (steps greedy_paths)."""
    run.status(f"{entry.name}: greedy answers")
    gate = run.suite.greedy
    with in_step("greedy"):
        for path in greedy_paths(run, entry):
            step(path, list[Answer], lambda: [greedy.answer(endpoint, prompt, gate.tokens) for prompt in gate.prompts])
    run.print_line(f"{entry.name}: {len(gate.prompts)} greedy answers")


def check_same_answers(run: Run, entry: Entry, endpoint: Endpoint) -> None:
    """Ask the saved greedy answers of a resumed run again; raises Problem("file") where a server answers otherwise."""
    path, gate = entry.folder / GREEDY, run.suite.greedy
    for saved in load(path, list[Answer]) if path.exists() else ():
        repeated = greedy.answer(endpoint, saved.prompt, gate.tokens)
        matched, total = greedy.matching(repeated, saved), len(saved.token_ids)
        if matched <= gate.min_match * total:
            raise Problem(
                "file",
                f"cannot resume {entry.name}: its server repeats {matched} of {total} tokens of the saved greedy answer"
                f" to {saved.prompt!r}: it is another server, or has other settings",
                "start the server that the run began with, or start a new run: another --run-dir",
            )


def unfinished(run: Run, entry: Entry) -> list[str]:
    """The steps of a profile's answers that have no file yet, by kind; a quick run has the greedy ones alone."""
    return entry.unfinished([*greedy_steps(run, entry), *([] if run.request.quick else score_steps(run, entry))])


def greedy_paths(run: Run, entry: Entry) -> list[Path]:
    """The steps of a profile's greedy answers.

    The reference answers twice in a quick run and on an external server: comparing the two may be its only accuracy
    record.
    """
    repeats = run.is_reference(entry) and (run.request.quick or run.request.url)
    names = [GREEDY, GREEDY_REPEATED] if repeats else [GREEDY]
    return [entry.folder / name for name in names]


def score(
    run: Run,
    entry: Entry,
    endpoint: Endpoint,
    repeat_contexts: int | None = None,
    paths: Sequence[ScoredPath] = forced.PATHS,
) -> None:
    """Score the texts on a running server and check its sinks (steps scores.json.gz, sinks.json).

    The reference is scored again in another order (REPEATED): its distance from itself is the noise. repeat_contexts:
    repeat only the first n contexts; None: all, as for a relative gate. paths: those that the server offers; decode
    needs the forcer. Transformers runs in a thread meanwhile.
    """
    if any(_compared(run, each) for each in run.entries):
        repeat_contexts = None
    model, settings, bounds = run.model, run.suite.texts, entry.thresholds.sinks
    source, context, status = settings.source, settings.shortest_prefill, status_of(run, entry)
    with in_step("log-probabilities"):
        texts = scored_texts(run, paths)
    checked = [text for text in texts if text.start == context]
    obstacle = sink_check.obstacle(model, checked) if "prefill" in paths else forced.MISSING["prefill"]
    with ThreadPoolExecutor(1) as executor:
        exact = None if obstacle else executor.submit(_exact, run, model, checked)
        with in_step("log-probabilities"):
            scores = answers.collect(endpoint, source, texts, entry.folder / SCORES, status, paths)
            if run.is_reference(entry):
                contexts = list(dict.fromkeys(text.start for text in texts))[:repeat_contexts]
                repeated = [text for text in texts if text.start in contexts]
                answers.collect(endpoint, source, repeated, entry.folder / REPEATED, status, paths, last_first=True)
        tokens = sum(len(text.ids) - text.start for text in texts)
        run.print_line(f"{entry.name}: log-probabilities of {tokens:,} tokens, through {' and '.join(paths)}")

        def check() -> SinkCheck:
            status("sinks against transformers")
            served = [text.prefill for text in scores.texts if text.context == context]
            return sink_check.check(served, exact.result(), bounds) if exact else sink_check.not_run(obstacle, bounds)

        with in_step("sinks"):
            sinks = step(entry.folder / SINKS, SinkCheck, check)
    run.print_line(f"{entry.name}: sinks {sinks.status}" + (f": {sinks.reason}" if sinks.reason else ""))


def scored_texts(run: Run, paths: Sequence[ScoredPath]) -> list[Text]:
    """The suite's texts that are scored through any of `paths`."""
    return [text for text in texts_of(run.model, run.suite.texts) if "decode" in paths or (paths and text.prefill)]


def is_scored(entry: Entry) -> bool:
    """Whether a profile's log-probabilities and sink check are in its folder."""
    return all((entry.folder / name).exists() for name in (SCORES, SINKS))


def ensure_reference(run: Run, entry: Entry) -> None:
    """Serve the reference profile for its answers alone, unless it is `entry` or they are in its folder."""
    reference = run.reference
    if not run.is_reference(entry) and not _is_answered(run, reference):
        run.print_line(f"{entry.name}: serving {reference.name} first, as the reference for its answers")
        try:
            _answer(run, reference)
        except Exception as error:
            error.step = f"reference {reference.name}: {getattr(error, 'step', 'preparation')}"
            raise


def reference_capacity(run: Run) -> int | None:
    """The KV capacity of the reference in tokens; None before its start."""
    resolved = row_settings(run.reference)["resolved"]
    return resolved.kv_capacity_tokens if resolved else None


def greedy_matches(run: Run, entry: Entry) -> list[GreedyMatch]:
    """The greedy answers against the reference's; none while answers are missing.

    The reference's own are there in a quick run alone: its repeated answers against the first.
    """
    name = GREEDY_REPEATED if run.is_reference(entry) else GREEDY
    paths = [entry.folder / name, run.reference.folder / GREEDY]
    if not all(path.exists() for path in paths):
        return []
    pairs = zip(*(load(path, list[Answer]) for path in paths), strict=True)
    return [greedy.match(reply, expected, run.reference.name, run.suite.greedy) for reply, expected in pairs]


def record(run: Run, entry: Entry) -> AccuracyRecord | None:
    """The log-probabilities against the reference's, judged; None while they are missing.

    The first verdict on complete answers is the run's own (step verdict.json); one that differs is dated.
    """
    is_reference, name = run.is_reference(entry), run.reference.name
    paths = [run.reference.folder / SCORES, entry.folder / (REPEATED if is_reference else SCORES)]
    if not all(path.exists() for path in paths):
        return None
    reference, candidate = (answers.read(path) for path in paths)
    if is_reference:
        reference = reference.at_contexts({text.context for text in candidate.texts})
    relative = None if is_reference else _relative(run, entry, reference, candidate)
    if not is_scored(entry):
        return judge(reference, candidate, entry.thresholds, name, relative=relative)
    sinks = sink_check.judged(load(entry.folder / SINKS, SinkCheck), entry.thresholds.sinks)
    verdict = judge(reference, candidate, entry.thresholds, name, sinks, relative)
    if not all(is_scored(each) for each in _compared(run, entry)):
        return verdict
    if verdict == step(entry.folder / "verdict.json", AccuracyRecord, lambda: verdict):
        return verdict
    return verdict.model_copy(update={"judged_at": datetime.now(UTC).replace(microsecond=0)})


def _compared(run: Run, entry: Entry) -> list[Entry]:
    """The profile of the run that an entry's relative gate names; none without such a gate or profile."""
    bounds = entry.thresholds.relative
    return [each for each in run.in_order() if bounds and each.name == bounds.profile]


def _relative(run: Run, entry: Entry, reference: Answers, candidate: Answers) -> RelativeGate | None:
    """The relative gate of an entry; None where its suite has none."""
    bounds = entry.thresholds.relative
    if bounds is None:
        return None
    if not (compared := _compared(run, entry)):
        return not_judged(bounds, f"{bounds.profile} is not in this run")
    decoders = {each.name: row_settings(each)["decoder"] for each in (run.reference, *compared, entry)}
    if len({*decoders.values()}) > 1:
        return not_judged(bounds, "decoders differ: " + ", ".join(f"{name} {each}" for name, each in decoders.items()))
    paths = [run.reference.folder / REPEATED, compared[0].folder / SCORES]
    if missing := [path for path in paths if not path.exists()]:
        return not_judged(bounds, f"{missing[0].parent.name} was not scored")
    return judge_relative(bounds, reference, *(answers.read(path) for path in paths), candidate)


def _measure(run: Run, entry: Entry) -> None:
    ensure_reference(run, entry)
    if not _is_answered(run, entry):
        _answer(run, entry)


def _is_answered(run: Run, entry: Entry) -> bool:
    """Whether all of a profile's answers are in its folder: of a quick run the greedy ones."""
    greedy_answered = all(path.exists() for path in greedy_paths(run, entry))
    return greedy_answered and (run.request.quick or is_scored(entry))


def _answer(run: Run, entry: Entry) -> None:
    """Serve a profile with the forcer and take all of its answers; in a quick run cold, for greedy ones alone."""
    if run.request.quick:
        with serve(run, entry, "cold") as endpoint:
            ask_greedy(run, entry, endpoint)
        return
    with serve(run, entry, "scored", forcer()) as endpoint:
        ask_greedy(run, entry, endpoint)
        score(run, entry, endpoint)


def _exact(run: Run, model: Model, checked: list[Text]) -> dict[str, list[float]]:
    """Transformers' log-probabilities, the same for every profile of a run with these texts (step transformers-*)."""
    key = hashlib.sha256(repr(checked).encode()).hexdigest()[:8]
    action = partial(sink_check.of_transformers, model, checked)
    return step(run.folder / f"transformers-{key}.json", dict[str, list[float]], action)


def _row(run: Run, entry: Entry, failure: FailedStep | None) -> AccuracyRow:
    return AccuracyRow(
        profile=entry.name,
        description=entry.description,
        **row_settings(entry),
        reference_kv_capacity_tokens=reference_capacity(run),
        greedy=greedy_matches(run, entry),
        accuracy=record(run, entry),
        failures=[failure] if failure else [],
    )
