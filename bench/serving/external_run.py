"""A serving run on an external server: its answers, its speed, and what it does not offer.

Rates come before log-probabilities: a failure on these less common requests must not cost the rates.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from bench.accuracy import forced, greedy
from bench.accuracy import run as accuracy
from bench.accuracy.forced import ScoredPath
from bench.record.steps import load, step
from bench.servers import digest, external
from bench.servers import run as runs
from bench.servers.external import ExternalEntry, hide_hosts
from bench.servers.result import FailedStep
from bench.servers.run import Run, in_step
from bench.serving import rates
from bench.serving.load import failures
from bench.serving.load.book_server import book_server
from bench.serving.load.rate import Attempt
from bench.serving.result import ServingResult, ServingRow
from bench.serving.run import longest_context, skipped_rates
from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Strict
from vllm_launch import software
from vllm_launch.terminal import Step

R = TypeVar("R", bound=Strict)

UNAVAILABLE = "unavailable.json"  # in an entry's folder: what its server does not offer, with the reason
GREEDY = "greedy answers"


def problems(run: Run) -> list[Problem]:
    """Everything that keeps a run from starting; writes nothing. Raises Problem("software") without llama-benchy."""
    software.check_llama_benchy()
    (entry,) = run.entries
    longest, limit = longest_context(run.suite.grid), entry.endpoint.context
    too_long = []
    if limit is not None and longest > limit:
        message = f"the grid needs a context of {longest} tokens, the server serves {limit}"
        too_long = [Problem("suite", message, "a smaller grid: --depth, --prompt, --output")]
    return [*too_long, *external.problems(run)]


def execute(run: Run, command: list[str]) -> ServingResult:
    """Measure an external server. Writes run.folder/result.json, also where a step fails and its Problem is raised."""
    run.show_steps(steps(run))
    command = [_hidden(run, word) for word in command]
    kind = partial(ServingResult, slo=run.request.slo, grid=run.suite.grid, reference_model=_reference_model(run))
    with book_server(longest_context(run.suite.grid)) as book_url:
        result = runs.measure_entries(run, command, kind, partial(_measure, run, book_url), partial(_row, run))
    rates.check(result)
    return result


def requests(run: Run) -> list[str]:
    """Lines that say what a run sends and where; the key is masked."""
    suite, (entry,) = run.suite, run.entries
    key = f"Authorization: Bearer ***, from {external.KEY_VARIABLE}" if entry.endpoint.headers else "no key"
    scored = "" if run.request.quick else f", {sum(each.texts for each in suite.texts.contexts)} texts to score"
    answers = f"{len(suite.greedy.prompts)} greedy prompts{scored}"
    lines = [f"{entry.name}: {entry.endpoint.url}, model {entry.endpoint.model}, {key}"]
    lines += [f"  /v1/completions: {answers}"]
    lines += [f"  /v1/chat/completions: {suite.grid.requests} requests of llama-benchy, and its warm-up"]
    if run.reference != entry:
        endpoint = run.reference.endpoint
        lines += [f"{run.reference.name}: {endpoint.url}, model {endpoint.model}, {key}"]
        lines += [f"  /v1/completions: {answers}"]
    return lines


def steps(run: Run) -> list[Step]:
    """The steps of a run in the order of execution, without those known to be unavailable."""
    servers, unavailable = run.in_order(), _unavailable(run)
    answers = [] if GREEDY in unavailable else [each for entry in servers for each in accuracy.greedy_steps(run, entry)]
    scores = [each for entry in servers for each in accuracy.score_steps(run, entry)] if _paths(run) else []
    return [*answers, *rates.steps(run, run.entries[0]), *scores]


def _measure(run: Run, book_url: str, entry: ExternalEntry) -> None:
    servers = run.in_order()
    with in_step("preparation"):
        for each in servers:
            run.status(f"{each.name}: what it offers")
            digest.guard(each.folder, external.digest_of(run, each))
            if not each.settings:
                run.print_line(f"{each.name}: states no settings: --resume can compare its greedy answers alone")
            accuracy.check_same_answers(run, each, each.endpoint)
            step(each.folder / UNAVAILABLE, dict[str, str], partial(_probe, run, each))
    unavailable = _unavailable(run)
    run.show_steps(steps(run))
    for name, reason in unavailable.items():
        run.print_line(f"not measured: {name} ({reason})")
    if GREEDY in unavailable and not _paths(run):
        run.print_line("no accuracy record can be made: the report withholds the speeds")
    if not external.serve_same_model(entry, run.reference):
        models = f"{run.reference.endpoint.model}, not {entry.endpoint.model}"
        run.print_line(f"warning: the reference serves {models}: are they the same model?")
    if GREEDY not in unavailable:
        for each in servers:
            accuracy.ask_greedy(run, each, each.endpoint)
    rates.measure(run, book_url, entry, entry.endpoint)
    if paths := _paths(run):
        for each in servers:
            if not accuracy.is_scored(each):
                accuracy.score(run, each, each.endpoint, repeat_contexts=1, paths=paths)


def _probe(run: Run, entry: ExternalEntry) -> dict[str, str]:
    """Try short requests: the measurements that the server does not offer, each with the reason."""
    endpoint = entry.endpoint
    reason = greedy.not_offered(endpoint, run.suite.greedy.prompts[0])
    missing = {GREEDY: reason} if reason else {}
    if run.request.quick:
        return missing
    texts = accuracy.scored_texts(run, forced.PATHS)
    longest = 1 + max(len(text.ids) for text in texts)  # scoring generates a token
    if endpoint.context and longest > endpoint.context:
        reasons = dict.fromkeys(forced.PATHS, f"the texts need {longest} tokens, the server serves {endpoint.context}")
    else:
        reasons = forced.missing_paths(endpoint, texts[0].ids[:8])
    return missing | {_scores_name(path): reason for path, reason in reasons.items()}


def _unavailable(run: Run) -> dict[str, str]:
    """Measurements that a server of the run is known not to offer, each with the reason."""
    missing = {}
    for entry in run.in_order():
        path = entry.folder / UNAVAILABLE
        owner = "" if entry in run.entries else f"{entry.name}: "
        for name, reason in load(path, dict[str, str]).items() if path.exists() else ():
            missing[name] = owner + reason
    return missing


def _paths(run: Run) -> list[ScoredPath]:
    """The paths to score: those that every server offers; none in a quick run."""
    unavailable = _unavailable(run)
    paths = [path for path in forced.PATHS if _scores_name(path) not in unavailable and not run.request.quick]
    with_prefill = any(group.prefill for group in run.suite.texts.contexts)
    return paths if "decode" in paths or with_prefill else []


def _scores_name(path: ScoredPath) -> str:
    return f"{path} log-probabilities"


def _row(run: Run, entry: ExternalEntry, failure: FailedStep | None) -> ServingRow:
    """A row of the finished steps; names no host."""
    fields = rates.row_fields(run, entry, failure)
    attempts = {name: [_with_hidden_errors(run, attempt) for attempt in fields[name]] for name in ("rates", "unrated")}
    messages = {"failures": [_replaced(each, "message", partial(_hidden, run)) for each in fields["failures"]]}
    return ServingRow(
        profile=entry.name,
        description=entry.description,
        decoder=None,
        requested=None,
        resolved=None,
        wiped=None,
        **attempts,
        **messages,
        greedy=accuracy.greedy_matches(run, entry),
        accuracy=accuracy.record(run, entry),
        unavailable=[_hidden(run, f"{name} ({reason})") for name, reason in _unavailable(run).items()],
        left_out=["log-probabilities", "sinks", *skipped_rates(run)] if run.request.quick else [],
        unfinished=entry.unfinished([each for each in steps(run) if each.kind != "rates"]),
    )


def _reference_model(run: Run) -> str | None:
    """The name that the reference server gives its model, without the folders of a path; None without such a server."""
    name = run.reference.endpoint.model
    return None if run.reference in run.entries else Path(name).name if name.startswith("/") else name


def _with_hidden_errors(run: Run, attempt: Attempt) -> Attempt:
    hide = partial(_hidden, run)
    requests = [_replaced(each, "error", hide) if each.error else each for each in attempt.requests]
    failures = [_replaced(each, "reason", hide) for each in attempt.failures]
    return attempt.model_copy(update={"requests": requests, "failures": failures})


def _replaced(record: R, field: str, change: Callable[[str], str]) -> R:
    return record.model_copy(update={field: change(getattr(record, field))})


def _hidden(run: Run, text: str) -> str:
    """The text without hosts, folders and secrets."""
    servers = [entry.endpoint for entry in run.in_order()]
    return failures.without_secrets(hide_hosts(text, [each.url for each in servers]), servers[0].headers)
