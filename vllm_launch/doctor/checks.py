"""The doctor's checks: each takes facts and says what it finds, with a remedy where something is wrong."""

from typing import Literal

from pydantic import JsonValue, model_validator

from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Strict
from vllm_launch import profile
from vllm_launch.doctor.backends import choice
from vllm_launch.doctor.facts import Need, Place, Trouble
from vllm_launch.machine import Machine
from vllm_launch.preflight import GIB, RUN_FOLDER_BYTES, TOO_OLD_CPU, lacking
from vllm_launch.profile import Device

Build = tuple[Device, str] | Trouble
Release = tuple[int, int]

# The first CUDA toolkit that compiles for a compute capability.
FIRST_TOOLKIT = {"9.0": (12, 0), "10.0": (12, 8), "10.3": (12, 9), "12.0": (12, 8), "12.1": (12, 9)}
# The first driver branch that runs programs of a CUDA generation.
FIRST_DRIVER = {12: "525", 13: "580"}


class Finding(Strict):
    """One thing that was looked at. remedy: what to do now; there is one exactly if the status is not "ok"."""

    topic: str
    status: Literal["ok", "warning", "error"]
    what: str
    remedy: str | None = None
    value: JsonValue = None

    @model_validator(mode="after")
    def _a_remedy_for_what_is_wrong(self):
        if (self.remedy is None) != (self.status == "ok"):
            raise ValueError(f"{self.topic}: status {self.status} with remedy {self.remedy!r}")
        return self


def gpu(found: Machine | None, why_none: str | None, capability: str | None, build: Build) -> Finding:
    """The GPU, and whether the installed vLLM goes with it."""
    for_device = build[0] if isinstance(build, tuple) else None
    if found is None:
        if for_device == "gpu":
            return Finding(
                topic="GPU",
                status="error",
                what=f"this environment has vLLM for CUDA, but {why_none}",
                remedy="mend the driver, or set up for the CPU in a new environment: make setup DEVICE=cpu",
            )
        return Finding(topic="GPU", status="ok", what=f"{why_none}; servers run on the CPU")
    several = f", the first of {found.gpus}" if found.gpus > 1 else ""
    what = f"{found.name}{several}, compute capability {capability}, {found.total_bytes / GIB:.0f} GiB" + (
        " shared with the system" if found.unified else ""
    )
    value = {"name": found.name, "capability": capability, "family": found.family, "unified": found.unified}
    if for_device == "cpu":
        return Finding(
            topic="GPU",
            status="warning",
            what=f"{what}; not used: this environment has vLLM for the CPU",
            remedy="set up for the GPU in a new environment: make setup DEVICE=gpu",
            value=value,
        )
    return Finding(topic="GPU", status="ok", what=what, value=value)


def driver(version: str | None, runs: Release, torch: str | None) -> Finding:
    """Whether the driver runs the CUDA generation that torch was built for. torch: "13.0", or None if not known."""
    what = f"{version}, runs CUDA up to {_dotted(runs)}"
    wanted = int(torch.split(".")[0]) if torch else 0
    if wanted > runs[0]:
        return Finding(
            topic="driver",
            status="error",
            what=f"{what}; torch is built for CUDA {torch}",
            remedy="update the NVIDIA driver"
            + (f" to {FIRST_DRIVER[wanted]} or later" if wanted in FIRST_DRIVER else ""),
        )
    return Finding(topic="driver", status="ok", what=what, value={"version": version, "cuda": _dotted(runs)})


def toolkit(
    nvcc: str | None, version: Release | None, ninja: bool, capability: str | None, backend: str | None, prebuilt: bool
) -> Finding:
    """Whether FlashInfer could compile its kernels: an error only where vLLM decodes with it and none is prebuilt."""
    first = FIRST_TOOLKIT.get(capability or "", (0, 0))
    install = f"install CUDA {_dotted(max(first, (13, 0)))} and set CUDA_HOME"
    what = f"nvcc of CUDA {_dotted(version)}" if version else "nvcc" if nvcc else "no nvcc"
    what += f" at {nvcc}" if nvcc else " (CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda)"
    remedies = [] if nvcc else [install]
    if version and version < first:
        what += f"; compute capability {capability} needs {_dotted(first)}"
        remedies.append(install)
    if not ninja:
        what += "; no ninja on PATH"
        remedies.append("put ninja on PATH: activate this environment before you start a server")
    remedy = "; ".join(remedies) or None
    needed = backend == "FLASHINFER" and not prebuilt
    if remedy and not needed:
        what, remedy = f"{what}; {backend or 'a server here'} needs none", None
    elif remedy:
        what += "; vLLM's backend here compiles FlashInfer's kernels"
    return Finding(
        topic="CUDA toolkit",
        status="error" if remedy else "ok",
        what=what,
        remedy=remedy,
        value={"nvcc": nvcc, "version": _dotted(version) if version else None, "ninja": ninja},
    )


def torch_cuda(packages: dict[str, str]) -> str | None:
    """The CUDA release torch was built for ("13.0"), "cpu", or None: from its version or its runtime's."""
    local = packages.get("torch", "").partition("+")[2]
    if local == "cpu":
        return "cpu"
    if local.startswith("cu") and local[2:].isdigit():
        return f"{local[2:-1]}.{local[-1]}"
    runtime = packages.get("nvidia-cuda-runtime") or packages.get("nvidia-cuda-runtime-cu12")
    return ".".join(runtime.split(".")[:2]) if runtime and "torch" in packages else None


def vllm(build: Build) -> Finding:
    """Which vLLM this environment has; none, both, or an unsupported one is an error."""
    if isinstance(build, Trouble):
        return Finding(topic="vLLM", status="error", what=build.what, remedy=build.remedy)
    device, version = build
    return Finding(
        topic="vLLM",
        status="ok",
        what=f"{version}, for {'CUDA' if device == 'gpu' else 'the CPU'}",
        value={"version": version, "device": device},
    )


def software(troubles: list[Trouble]) -> list[Finding]:
    """What this system and environment lack that every server or bench needs."""
    return [Finding(topic="software", status="error", what=lack.what, remedy=lack.remedy) for lack in troubles]


def torch(packages: dict[str, str], pins: dict[str, str], build: Build) -> Finding:
    """The torch that vLLM was built against, for the device that vLLM was built for."""
    version, cuda = packages.get("torch"), torch_cuda(packages)
    has_vllm = isinstance(build, tuple)
    if version is None:
        if has_vllm:
            return Finding(topic="torch", status="error", what="not installed; vLLM needs it", remedy="run: make setup")
        return Finding(topic="torch", status="ok", what="not installed; comes with vLLM")
    what = version if cuda in (None, "cpu") else f"{version}, for CUDA {cuda}"
    if has_vllm and build[0] == "gpu" and cuda == "cpu":
        return Finding(
            topic="torch", status="error", what=f"{what} has no CUDA, and vLLM here needs it", remedy="run: make setup"
        )
    return pinned("torch", "torch", version, what, pins)


def backends(machine: Machine, build: Build, packages: dict[str, str]) -> list[Finding]:
    """What this vLLM picks here with sinks, for a BF16 and an FP8 cache, and what that costs."""
    if isinstance(build, Trouble):
        return []
    topic, family, version = "attention backend", machine.family, build[1]
    found = choice(family, version)
    if not machine.avx2:
        what = f"vLLM's CPU build does not run on this CPU ({machine.name})"
        return [Finding(topic=topic, status="error", what=what, remedy=TOO_OLD_CPU)]
    try:
        profile.load("baseline").expected_backends(family, version)
    except Problem as problem:
        return [Finding(topic=topic, status="error", what=problem.message, remedy=problem.remedy)]
    if found is None:
        return []
    value = {"family": family, "vllm": version, "backend": found.backend}
    cost = found.fp8 if machine.fp8_kernels else found.fp8_widened
    results = [
        Finding(topic=topic, status="ok", what=f"KV auto (BF16): {found.backend}. {found.bf16}", value=value),
        Finding(
            topic=topic,
            status="warning" if found.better else "ok",
            what=f"KV fp8: {found.backend}. {cost}",
            remedy=found.better,
            value=value,
        ),
    ]
    if found.cubins:
        results += _cubins(found.backend, packages.get("flashinfer-python"), packages.get("flashinfer-cubin"))
    return results


def _cubins(backend: str, flashinfer_version: str | None, version: str | None) -> list[Finding]:
    """NVIDIA's prebuilt kernels, without which vLLM does not take FlashInfer for sinks."""
    if version and version == flashinfer_version:
        return []
    what = (
        f"flashinfer-cubin {version} does not go with FlashInfer {flashinfer_version}"
        if version
        else f"no flashinfer-cubin: {backend} is taken only if NVIDIA's artifactory answers when a server starts;"
        " else vLLM silently takes another, and `serve` ends the run"
    )
    remedy = f"pip install --no-deps flashinfer-cubin=={flashinfer_version or 'VERSION'}"
    return [Finding(topic="attention backend", status="warning", what=what, remedy=remedy)]


def model(need: Need) -> Finding:
    """Whether the profiles' default model is on this machine: without it, they need a --model."""
    if need.missing:
        return Finding(topic="model", status="error", what=need.missing.what, remedy=need.missing.remedy)
    return Finding(topic="model", status="ok", what=f"{need.model}, weights {(need.weight_bytes or 0) / GIB:.1f} GiB")


def memory(need: Need, machine: Machine, page_cache_bytes: int, users: list[str]) -> Finding:
    """Whether the profiles' default model fits now, as preflight decides it.

    On unified memory, files in the page cache count as in the way.
    """
    asked = f"{', '.join(need.profiles)}: {need.model} takes {need.bytes / GIB:.1f} GiB ({need.detail})"
    what = f"{machine.free_bytes / GIB:.1f} GiB free; {asked}"
    value = {"free_bytes": machine.free_bytes, "needed_bytes": need.bytes, "unified": machine.unified}
    status, remedy = "ok", None
    lack = lacking("cpu" if machine.family == "cpu" else "gpu", need.weight_bytes or 0, need.bytes, machine.free_bytes)
    if lack == "share":
        status = "error"
        what += f", and its weights alone {need.weight_bytes / GIB:.1f} GiB"
        remedy = "give --model openai/gpt-oss-20b, or more memory: -- --gpu-memory-utilization 0.9"
    elif lack == "free":
        status = "error"
        what += f"; in use by {', '.join(users) or 'programs that the driver does not name'}"
        remedy = "end programs that you do not need" + (
            "" if machine.family == "cpu" else ", or take less: -- --gpu-memory-utilization 0.5"
        )
    elif machine.unified and machine.free_bytes - page_cache_bytes < need.bytes:
        status = "warning"
        what += f"; {page_cache_bytes / GIB:.1f} GiB of it hold files (page cache), which the GPU does not always get"
        remedy = "empty the page cache before you serve: sync; echo 3 | sudo tee /proc/sys/vm/drop_caches"
        value |= {"page_cache_bytes": page_cache_bytes}
    return Finding(topic="memory", status=status, what=what, remedy=remedy, value=value)


def disk(place: Place) -> Finding:
    """Whether a folder can be written, and has room for a run."""
    used = sum(place.used_bytes.values())
    what = f"{place.path}: {place.free_bytes / GIB:.1f} GiB free" + (
        f", holds {used / GIB:.1f} GiB" if used > GIB // 20 else ""
    )
    value = {"path": place.path, "free_bytes": place.free_bytes, "used_bytes": place.used_bytes}
    if not place.writable:
        what, remedy = f"{place.path} cannot be written", "mend its rights, or those of the folder it belongs in"
    elif place.free_bytes < RUN_FOLDER_BYTES:
        what, remedy = f"{what}, needs {RUN_FOLDER_BYTES / GIB:.1f}", "free some space on that disk"
    else:
        return Finding(topic=place.role, status="ok", what=what, value=value)
    return Finding(topic=place.role, status="error", what=what, remedy=remedy, value=value)


def port(number: int, user: str | None) -> Finding:
    """Whether the default port is free; a server takes another when told to."""
    if user is None:
        return Finding(topic="port", status="ok", what=f"{number} is free")
    return Finding(
        topic="port",
        status="warning",
        what=f"{number} is taken by {user}",
        remedy="end it, or serve on another: --port",
        value={"port": number},
    )


def pinned(topic: str, distribution: str, version: str, what: str, pins: dict[str, str]) -> Finding:
    pin = pins.get(distribution)
    if pin and version.split("+")[0] != pin:
        return Finding(topic=topic, status="warning", what=f"{what}; vLLM asks for {pin}", remedy="run: make setup")
    return Finding(topic=topic, status="ok", what=what, value={"version": version})


def _dotted(release: Release) -> str:
    return f"{release[0]}.{release[1]}"
