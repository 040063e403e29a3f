"""What the kernel bench needs of its environment, and what a resumed run must find unchanged."""

from bench.kernels import vllm_peers
from bench.kernels.peers import DecodeKernel
from bench.kernels.request import KernelsRun
from bench.record import run_folder
from flashinfer_patches import engine, package
from flashinfer_patches.errors import Problem
from vllm_launch import machine, provenance, redaction
from vllm_launch.provenance import Provenance

MAX_CEILING_CHANGE = 0.01  # of one GPU from run to run, with room; GPUs of one name differ by 3%


def problems(run: KernelsRun) -> list[Problem]:
    """Everything that keeps a run from starting or resuming; writes nothing. Raises Problem for its folder.

    vLLM is required only where its kernels were requested by name.
    """
    run_folder.check(run.folder, run.request)
    return [problem for problem in (_gpu(), _flashinfer(run.kernels), _named_vllm(run)) if problem]


def no_vllm(kernel: DecodeKernel, reason: str) -> Problem:
    """The Problem of a kernel of vLLM's that was requested by name."""
    return Problem(
        "software",
        f"{kernel.name} cannot be measured: {reason}",
        "set up vLLM for a GPU: make setup DEVICE=gpu; or name other kernels with --kernel",
    )


def collect_provenance(command: list[str]) -> Provenance:
    """The run's provenance; FlashInfer's release from its files, for a folder on PYTHONPATH has no metadata."""
    import torch

    collected = provenance.collect(machine.detect("gpu"), command)
    versions = {"cuda": torch.version.cuda or "none"}
    if installed := package.installed():
        versions["flashinfer-python"] = package.version(installed)
    return collected.model_copy(update={"versions": collected.versions | versions})


def check_unchanged(before: Provenance, current: Provenance) -> None:
    """Raise Problem("software") for another GPU, release or commit: a result names one of each."""
    sides = conditions(before), conditions(current)
    if changed := differing(*sides):
        earlier, later = (", ".join(f"{name} {values.get(name)}" for name in changed) for values in sides)
        raise Problem(
            "software",
            f"this run started with {earlier}; now there is {later}",
            "restore what it started with, or start a new run: another --run-dir",
        )


def check_same_ceiling(before: float, current: float) -> None:
    """Raise Problem("software") where the read ceiling is that of another GPU."""
    if abs(current / before - 1) > MAX_CEILING_CHANGE:
        raise Problem(
            "software",
            f"this run started on a GPU that reads {before / 1e12:.3f} TB/s; this one reads {current / 1e12:.3f} TB/s",
            "use the GPU that it started on, or start a new run: another --run-dir",
        )


def _gpu() -> Problem | None:
    try:
        machine.detect("gpu")
    except LookupError as error:
        return Problem("software", f"no GPU to time kernels on: {error}", "run this on a machine with a GPU")
    import torch

    if torch.cuda.is_available():
        return None
    return Problem("software", f"torch {torch.__version__} sees no GPU", "install torch for CUDA: make setup")


def _flashinfer(kernels: list[DecodeKernel]) -> Problem | None:
    if all(kernel.source != "flashinfer" for kernel in kernels):
        return None
    if package.installed() is None:
        remedy = "set up for a GPU: make setup DEVICE=gpu; or name a folder with it: PYTHONPATH=DIR fp8-sinks ..."
        return Problem("software", "no FlashInfer in this environment", remedy)
    status, patched = engine.status(), [str(kernel) for kernel in kernels if kernel.patched]
    if not patched or status.state == "applied":
        return None
    available = [kernel for kernel in kernels if not kernel.patched]
    if vllm_peers.missing_reason():
        available = [kernel for kernel in available if kernel.source != "vllm"]
    options = " ".join(f"--kernel {name}" for name in dict.fromkeys(kernel.name for kernel in available))
    return Problem(
        "software",
        f"FlashInfer {status.version} in {redaction.redact(str(status.target))} is {status.state};"
        f" {', '.join(patched)}: expected the patch series applied",
        f"run: fp8-sinks patch apply{f'; without them: {options}' if options else ''}",
    )


def _named_vllm(run: KernelsRun) -> Problem | None:
    kernel = next((kernel for kernel in run.kernels if kernel.source == "vllm"), None)
    reason = vllm_peers.missing_reason() if kernel and run.kernels_named else None
    return no_vllm(kernel, reason) if reason else None


def conditions(source: Provenance) -> dict[str, str | None]:
    """What times depend on, by name."""
    hardware = {"GPU": source.machine.name, "driver": source.machine.driver}
    return hardware | {"patch set": source.patch, "commit": source.git_commit} | source.versions


def differing(before: dict, current: dict) -> list[str]:
    """Names whose values differ."""
    return [name for name in before | current if before.get(name) != current.get(name)]
