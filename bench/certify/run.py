"""A run of `fp8-sinks certify`: time the decoders, check the kernels while the gate's servers run, save the verdict."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bench.certify import budget, gate, speed
from bench.certify.budget import OutOfTime, Watch
from flashinfer_patches.errors import Problem
from vllm_launch import certificate, machine
from vllm_launch import plan as plans
from vllm_launch.certificate import CHECKS, Certificate, Check, CheckName, Key
from vllm_launch.profile import Decoder
from vllm_launch.terminal import Display

if TYPE_CHECKING:
    from bench.certify.correctness import Kernels

FIRST_CAPABILITY = 8.0  # that the kernels compile for


@dataclass(frozen=True)
class Request:
    """What to certify.

    folder: of the servers' logs. seconds: that it may take. kernels: None for those of lowp. device: where they run.
    """

    folder: Path
    seconds: float
    kernels: "Kernels | None" = None
    device: str = "cuda"


def problem() -> Problem | None:
    """What keeps any certificate from being made here; None if nothing does."""
    try:
        capability = machine.capability_and_cuda()[0]
        key = certificate.current_key()
    except LookupError as error:
        return Problem("software", f"no GPU to certify: {error}", "run this on a machine with an NVIDIA GPU")
    if float(capability) < FIRST_CAPABILITY:
        message = f"{key.gpu} has compute capability {capability}; expected {FIRST_CAPABILITY} or later"
        return Problem("software", message, "keep decoder stock on this GPU")
    try:
        import torch
    except ImportError as error:
        return Problem("software", f"torch cannot be imported: {error}", "install torch for CUDA: make setup")
    if not torch.cuda.is_available():
        message = f"torch {torch.__version__} sees no GPU"
        return Problem("software", message, "install torch for CUDA: make setup DEVICE=gpu")
    return _not_buildable() or _not_replaceable(key)


def preview(folder: Path) -> list[str]:
    """What execute() would run and write, a line each; starts nothing."""
    from bench.certify import cases

    counts = {"decode": cases.decode_cases(), "cache_write": cases.write_cases(), "cache_read": cases.read_cases()}
    flashinfer = speed.flashinfer_obstacle()
    lines = [f"{name}: {len(named)} cases" for name, named in counts.items()]
    lines.append("graph: replays of decode, cache_write and cache_read")
    lines.append(f"speed: lowp at {', '.join(speed.SHAPES)}")
    lines.append(f"speed: FlashInfer not timed: {flashinfer}" if flashinfer else "speed: flashinfer at the same")
    if obstacle := gate.obstacle(folder, "lowp"):
        lines.append(f"gate: not run: {obstacle}")
    else:
        lines += [f"gate: {plans.as_shell(plan)}" for plan in gate.plan_servers("lowp")]
    return [*lines, f"certificate: {certificate.path_of(certificate.current_key())}"]


def execute(request: Request, display: Display) -> Certificate:
    """Run every check that the time allows, and save the certificate. Raises Problem where it cannot be saved."""
    started = time.monotonic()
    key, watch = certificate.current_key(), budget.watch(request.seconds)
    checks: dict[CheckName, Check] = {}
    ceiling, timings, reason = None, [], "not reached"

    def add(check: Check) -> None:
        checks[check.name] = check
        display.print_line(f"{check.name}: {check.verdict}: {check.detail}")

    try:
        measured = speed.check(display, watch)
        ceiling, timings = measured.read_ceiling, measured.timings
        add(measured.check)
        for check in _answers(request, speed.fastest(timings), display, watch):
            add(check)
    except OutOfTime as error:
        reason = str(error)
    complete = [checks.get(name) or Check(name=name, verdict="not run", detail=reason) for name in CHECKS]
    passed = all(check.verdict == "passed" for check in complete)
    result = Certificate(
        key=key,
        created=datetime.now(UTC).replace(microsecond=0),
        seconds=round(time.monotonic() - started, 1),
        read_ceiling_bytes_per_s=ceiling,
        checks=complete,
        timings=timings,
        decoder=speed.fastest(timings) if passed else "stock",
    )
    certificate.save(result)
    return result


def _answers(request: Request, winner: Decoder, display: Display, watch: Watch) -> Iterator[Check]:
    """Check the kernels while the gate's servers start, then judge what these answered."""
    decoder = "lowp" if winner == "stock" else winner
    if obstacle := gate.obstacle(request.folder, decoder):
        yield Check(name="gate", verdict="not run", detail=obstacle)
        yield from _kernels(request, display, watch)
        return
    with gate.started(gate.plan_servers(decoder), request.folder, watch) as judged:
        yield from _kernels(request, display, watch)
        display.status(f"gate: decoder {decoder} on vLLM")
        yield judged()


def _kernels(request: Request, display: Display, watch: Watch) -> Iterator[Check]:
    from bench.certify import correctness

    kernels = request.kernels or correctness.Kernels()
    display.status("kernels")
    yield from correctness.check_calls(kernels, request.device, watch)
    display.status("CUDA graphs")
    yield correctness.check_graphs(kernels, watch)


def _not_buildable() -> Problem | None:
    from lowp.jit.driver import REMEDY, bindings

    try:
        bindings("nvrtc")
    except RuntimeError as error:
        return Problem("software", f"the kernels cannot be compiled: {error}", REMEDY)
    return None


def _not_replaceable(key: Key) -> Problem | None:
    try:
        certificate.check_replaceable(certificate.path_of(key))
    except Problem as problem:
        return problem
    return None
