"""The accuracy gate of a certificate: the tiny model's forced decode through vLLM, against stock BF16.

Two real servers of the launcher run side by side, while the kernels are checked. They compile no model, which takes a
minute, and capture CUDA graphs of decode steps, which is where a decoder runs.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench import suite
from bench.accuracy import answers, forced
from bench.accuracy.answers import Answers
from bench.accuracy.gate_words import failures
from bench.accuracy.judge import judge
from bench.accuracy.texts import texts_of
from bench.accuracy.verdicts import AccuracyRecord
from bench.certify.budget import OutOfTime, Watch
from bench.servers.client import endpoint_of
from bench.servers.run import free_port
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing
from vllm_launch import plan as plans
from vllm_launch import preflight, profile, server, software
from vllm_launch.certificate import Check, Verdict
from vllm_launch.decoder.contract import CERTIFYING
from vllm_launch.model import EMBEDDED
from vllm_launch.plan import Plan
from vllm_launch.profile import Argument, Decoder

REFERENCE, CANDIDATE = "baseline", "fp8"  # profiles
GPU_ARGUMENTS: dict[str, Argument] = {
    "gpu-memory-utilization": 0.1,
    "kv-cache-memory-bytes": 256 << 20,  # without it the two servers would count each other's memory as their own
    "compilation-config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},
}


def plan_servers(decoder: Decoder) -> list[Plan]:
    """Plan the reference's server and the decoder's, with our token forcer. Raises Problem.

    They run on a GPU without a certificate.
    """
    device, version = software.vllm_build()
    extra = forced.arguments(device, version) | (GPU_ARGUMENTS if device == "gpu" else {})
    profiles = [profile.load(REFERENCE), profile.load(CANDIDATE).model_copy(update={"decoder": decoder})]
    planned = [
        plans.make(
            each,
            port=free_port(),
            cache_root=Path.home() / ".cache" / "fp8-sinks",
            model_path=str(EMBEDDED),
            extra=extra,
        )
        for each in profiles
    ]
    return [each.model_copy(update={"environment": each.environment | {CERTIFYING: "1"}}) for each in planned]


def obstacle(folder: Path, decoder: Decoder) -> str | None:
    """Why the gate cannot run in this environment; None if it can."""
    try:
        if software.vllm_build()[0] != "gpu":
            return "vLLM here is the CPU build; set up one for CUDA: make setup DEVICE=gpu"
        reference, _ = plan_servers(decoder)
        problems = preflight.problems(reference, folder)  # the decoder's would require the certificate
    except Problem as problem:
        problems = [problem]
    return f"{problems[0].message}; {problems[0].remedy}" if problems else None


@contextmanager
def started(server_plans: list[Plan], folder: Path, watch: Watch) -> Iterator[Callable[[], Check]]:
    """Start the servers and score the texts while the block runs; yields a function that waits and judges.

    server_plans: of `plan_servers`. folder: for logs and scores. When the block ends no server is left.
    """
    ended = threading.Event()

    def check_time() -> None:
        if ended.is_set():
            raise OutOfTime("ended before it was finished")
        watch()

    with ThreadPoolExecutor(len(server_plans)) as pool:
        futures = [pool.submit(_answers, plan, folder / plan.profile, check_time) for plan in server_plans]
        try:
            yield lambda: _judged(*futures)
        finally:
            ended.set()


def _answers(plan: Plan, folder: Path, check_time: Callable[[], None]) -> Answers:
    """Score the suite's texts on a server of this plan."""
    texts = suite.load(None, plan.model.name).texts
    collected = False

    def status(_line: str) -> None:
        if not collected:
            check_time()

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with server.running(plan, folder, status) as running:
        endpoint = endpoint_of(running)
        scores = answers.collect(endpoint, texts.source, texts_of(plan.model, texts), folder / "scores.json.gz", status)
        collected = True
    return scores


def _judged(reference: Future[Answers], candidate: Future[Answers]) -> Check:
    try:
        expected = reference.result()
    except (Problem, OutOfTime) as error:
        return _without_scores(error, "not run", REFERENCE)
    try:
        scores = candidate.result()
    except (Problem, OutOfTime) as error:
        return _without_scores(error, "failed" if isinstance(error, Problem) else "not run", CANDIDATE)
    thresholds = suite.load(None, EMBEDDED.name).thresholds_of(profile.load(CANDIDATE))
    return verdict(judge(expected, scores, thresholds, REFERENCE))


def verdict(record: AccuracyRecord) -> Check:
    """The verdict on a record: failed unless every gate that is judged passed, and at least one is."""
    distance = f"mean |Δ log p| {record.decode.mean_abs_delta.value:.3f} in decode"
    problems = failures(record)
    if record.passed:
        return Check(name="gate", verdict="passed", detail=f"{distance}, {len(record.gates)} figures judged")
    return Check(name="gate", verdict="failed", detail=f"{distance}, {len(problems)} gates failed", problems=problems)


def _without_scores(error: Problem | OutOfTime, verdict: Verdict, name: str) -> Check:
    """The check of a profile that has no scores: the error and its remedy, then the end of the server's log."""
    message, *log = str(error).splitlines()
    remedy = f"; {error.remedy}" if isinstance(error, Problem) else ""
    return Check(name="gate", verdict=verdict, detail=f"{name}: {message.rstrip(':')}{remedy}", problems=log)
