"""What the engine bench needs of its environment, what an engine's process gets of it, and what a resume must find."""

import hashlib
import os
from pathlib import Path

import pynvml

from bench.engine import variants
from bench.engine.models import SCALES
from bench.engine.request import EngineRun
from bench.engine.result import Piece
from bench.engine.variants import Variant
from bench.record import run_folder
from flashinfer_patches import jit_cache, package
from flashinfer_patches.errors import Problem
from vllm_launch import machine, provenance, software
from vllm_launch.decoder.contract import KV_SCALES, PLUGIN, RECORD
from vllm_launch.marks import NONCE_VARIABLE
from vllm_launch.plan import CACHE_VARIABLES, FIXED_ENVIRONMENT, KERNEL_CACHE, inherited_environment
from vllm_launch.redaction import REPO

OURS = "FP8_SINKS_"
VISIBLE = "CUDA_VISIBLE_DEVICES"
OF_DEVICE = {
    "cpu": {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCHDYNAMO_DISABLE": "1",
        PLUGIN: "1",
    },  # the plugin makes a CPU's FP8 right
    "gpu": {"VLLM_USE_FLASHINFER_SAMPLER": "0"},  # builds for over a minute
}
# With several ranks. All-reduce by NCCL and vLLM's own kernel, without NVLink multicast: on hosts whose GPUs are shared
# it may be forbidden, and ratios between hosts would depend on it.
OF_RANKS = {
    "cpu": {"VLLM_CPU_OMP_THREADS_BIND": "nobind"},  # binding needs a NUMA node a rank
    "gpu": {
        "NCCL_NVLS_ENABLE": "0",
        "NVSHMEM_DISABLE_NVLS": "1",
        "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
        "VLLM_ALLREDUCE_USE_FLASHINFER": "0",
        "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    },
}


def problems(run: EngineRun) -> list[Problem]:
    """Everything that keeps a run from starting or resuming; writes nothing. Raises Problem for its folder."""
    run_folder.check(run.folder, run.request)
    return [problem for problem in (_release(run), _device(run), _installed(run)) if problem]


def environment(run: EngineRun, variant: Variant, nonce: str, record: Path) -> dict[str, str]:
    """The complete environment of an engine's process: stock variants have no variable of ours on a GPU.

    record: where our plugin writes what it resolved.
    """
    cache = caches(run.folder / run_folder.CACHE)
    plugin = variant.environment and variant.environment | {RECORD: str(record)}
    if variant.kv_format == "int8-static":
        plugin |= {KV_SCALES: str(run.folder.resolve() / SCALES)}
    process = {NONCE_VARIABLE: nonce, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    ranks = OF_RANKS[run.device] if run.request.tensor_parallel > 1 else {}
    return _python_environment() | cache | OF_DEVICE[run.device] | ranks | plugin | process


def _python_environment() -> dict[str, str]:
    """The caller's environment without variables of ours, and modules of this checkout first."""
    inherited = {name: value for name, value in inherited_environment().items() if not name.startswith(OURS)}
    fixed = {name: value for name, value in FIXED_ENVIRONMENT.items() if name != PLUGIN}
    paths = [REPO, *(Path(path).resolve() for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    return inherited | fixed | {"PYTHONPATH": os.pathsep.join(map(str, paths))}


def caches(root: Path) -> dict[str, str]:
    """The variables of the run's kernel caches, whose folders exist then."""
    folders = {name: root / folder for name, folder in CACHE_VARIABLES.items()}
    if package.installed():
        folders[KERNEL_CACHE] = jit_cache.make(jit_cache.workspace(folders[KERNEL_CACHE]))
    folders["CUDA_CACHE_PATH"].mkdir(parents=True, exist_ok=True)  # the driver may not create it
    return {name: str(folder) for name, folder in folders.items()}


def gpu_identity(gpus: int) -> str | None:
    """A hash of the UUIDs of the first GPUs; None without a GPU."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        uuids = [pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(gpus)]
        return hashlib.sha256("".join(map(str, uuids)).encode()).hexdigest()[:12]
    finally:
        pynvml.nvmlShutdown()


def conditions(piece: Piece) -> dict[str, str | None]:
    """What the times of a piece depend on, by name."""
    source = piece.provenance
    hardware = {"GPU": source.machine.name, "GPU's identity": piece.gpu, "driver": source.machine.driver}
    return hardware | {"patch set": source.patch, "commit": source.git_commit} | source.versions


def check_unchanged(before: Piece, current: Piece) -> None:
    """Raise Problem("software") for another machine, release or commit: ratios hold within a piece alone."""
    first, second = conditions(before), conditions(current)
    changed = [name for name in first | second if first.get(name) != second.get(name)]
    if changed:
        earlier, later = (", ".join(f"{name} {side.get(name)}" for name in changed) for side in (first, second))
        raise Problem(
            "software",
            f"this run started with {earlier}; now there is {later}",
            "start a new run, which measures stock BF16 too: another --run-dir; join them with --join",
        )


def collect(run: EngineRun, command: list[str]) -> Piece:
    """The piece that starts now, without its read ceiling."""
    source = provenance.collect(machine.detect(run.device), command)
    gpu = gpu_identity(run.request.tensor_parallel) if run.device == "gpu" else None
    return Piece(id=run.folder.name, provenance=source, gpu=gpu, read_ceiling_bytes_per_s=None)


def _release(run: EngineRun) -> Problem | None:
    absent = [name for name in run.request.variants if not variants.has(variants.named(name), run.vllm)]
    if not absent:
        return None
    message = f"{', '.join(absent)}: expected vLLM {', '.join(variants.named(absent[0]).releases)}, got {run.vllm}"
    return Problem("software", message, "leave the variant out, or install that release: make setup VLLM=0.33")


def _device(run: EngineRun) -> Problem | None:
    if run.device == "cpu" and run.request.shape != "tiny":
        message = f"{run.request.shape} needs a GPU; this environment has vLLM for a CPU"
        return Problem("software", message, "on a CPU: --shape tiny")
    try:
        detected = machine.detect(run.device)
    except LookupError as error:
        return Problem("software", f"no GPU to run an engine on: {error}", "run this on a machine with a GPU")
    ranks, gpus = run.request.tensor_parallel, visible_gpus(detected.gpus)
    if run.device == "gpu" and gpus < ranks:
        message = f"--tensor-parallel {ranks}: expected {ranks} GPUs, got {gpus}"
        return Problem("software", message, f"run this on a machine with {ranks} GPUs, and check {VISIBLE}")
    return None


def visible_gpus(gpus: int) -> int:
    """How many of the machine's GPUs an engine sees."""
    names = os.environ.get(VISIBLE)
    return gpus if names is None else min(gpus, len([name for name in names.split(",") if name.strip()]))


def _installed(run: EngineRun) -> Problem | None:
    """A decoder that is not stock needs our plugin, which vLLM finds in an installed package alone."""
    if all(variant.decoder == "stock" for variant in run.variants):
        return None
    try:
        software.check_installed(_python_environment())
    except Problem as problem:
        return problem
    return None
