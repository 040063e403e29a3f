"""The doctor's checks: each judges facts and returns a finding, with a remedy if something is wrong."""

from flashinfer_patches.errors import Problem
from vllm_launch import profile
from vllm_launch.certificate import COMMAND, Status
from vllm_launch.decoder.choice import choose
from vllm_launch.doctor.backends import choice
from vllm_launch.doctor.facts import Build, Failure, Folder, Need, Release
from vllm_launch.doctor.finding import Finding, error, ok, warning
from vllm_launch.machine import Machine
from vllm_launch.preflight import GIB, RUN_FOLDER_BYTES, TOO_OLD_CPU, lacking

# The first CUDA toolkit that compiles for a compute capability.
FIRST_TOOLKIT = {"9.0": (12, 0), "10.0": (12, 8), "10.3": (12, 9), "12.0": (12, 8), "12.1": (12, 9)}
# The first driver branch that runs programs of a CUDA generation.
FIRST_DRIVER = {12: "525", 13: "580"}
SETUP = "run: make setup"


def gpu(detected: Machine | None, no_gpu: str | None, capability: str | None, build: Build) -> Finding:
    """Check that the GPU and the installed vLLM go together. no_gpu: why none was detected."""
    vllm_device = None if isinstance(build, Failure) else build[0]
    if detected is None:
        if vllm_device == "gpu":
            return error(
                "GPU",
                f"this environment has vLLM for CUDA, but {no_gpu}",
                "repair the driver, or set up for the CPU in a new environment: make setup DEVICE=cpu",
            )
        return ok("GPU", f"{no_gpu}; servers run on the CPU")
    several = f", the first of {detected.gpus}" if detected.gpus > 1 else ""
    shared = " shared with the system" if detected.unified else ""
    size = f"{detected.total_bytes / GIB:.0f} GiB{shared}"
    message = f"{detected.name}{several}, compute capability {capability}, {size}"
    value = {
        "name": detected.name,
        "capability": capability,
        "family": detected.family,
        "unified": detected.unified,
    }
    if vllm_device == "cpu":
        return warning(
            "GPU",
            f"{message}; not used: this environment has vLLM for the CPU",
            "set up for the GPU in a new environment: make setup DEVICE=gpu",
            value,
        )
    return ok("GPU", message, value)


def driver(version: str | None, newest_cuda: Release, torch: str | None) -> Finding:
    """Check that the driver runs the CUDA generation of torch. torch: its CUDA release ("13.0"), None if not known."""
    message = f"{version}, runs CUDA up to {_dotted(newest_cuda)}"
    required = int(torch.split(".")[0]) if torch else 0
    if required > newest_cuda[0]:
        branch = f" to {FIRST_DRIVER[required]} or later" if required in FIRST_DRIVER else ""
        return error("driver", f"{message}; torch is built for CUDA {torch}", f"update the NVIDIA driver{branch}")
    return ok("driver", message, {"version": version, "cuda": _dotted(newest_cuda)})


def toolkit(
    nvcc: str | None, version: Release | None, ninja: bool, capability: str | None, backend: str | None, prebuilt: bool
) -> Finding:
    """Check that FlashInfer can compile its kernels: an error only if vLLM decodes with it and none is prebuilt."""
    first = FIRST_TOOLKIT.get(capability or "", (0, 0))
    install = f"install CUDA {_dotted(max(first, (13, 0)))} and set CUDA_HOME"
    message = f"nvcc of CUDA {_dotted(version)}" if version else "nvcc" if nvcc else "no nvcc"
    message += f" at {nvcc}" if nvcc else " (CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda)"
    remedies = [] if nvcc else [install]
    if version and version < first:
        message += f"; compute capability {capability} needs {_dotted(first)}"
        remedies.append(install)
    if not ninja:
        message += "; no ninja on PATH"
        remedies.append("put ninja on PATH: activate this environment before you start a server")
    value = {"nvcc": nvcc, "version": _dotted(version) if version else None, "ninja": ninja}
    if not remedies:
        return ok("CUDA toolkit", message, value)
    if backend != "FLASHINFER" or prebuilt:
        return ok("CUDA toolkit", f"{message}; {backend or 'a server here'} needs none", value)
    message += "; vLLM's backend here compiles FlashInfer's kernels"
    return error("CUDA toolkit", message, "; ".join(remedies), value)


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
    """Check that this environment has exactly one vLLM, of a supported version."""
    if isinstance(build, Failure):
        return error("vLLM", build.message, build.remedy)
    device, version = build
    target = "CUDA" if device == "gpu" else "the CPU"
    return ok("vLLM", f"{version}, for {target}", {"version": version, "device": device})


def software(failures: list[Failure]) -> list[Finding]:
    """Report what this system and environment lack that every server or bench needs."""
    return [error("software", failure.message, failure.remedy) for failure in failures]


def torch(packages: dict[str, str], pins: dict[str, str], build: Build) -> Finding:
    """Check that torch has the version and the device that the installed vLLM was built for."""
    version, cuda = packages.get("torch"), torch_cuda(packages)
    if version is None:
        if isinstance(build, Failure):
            return ok("torch", "not installed; comes with vLLM")
        return error("torch", "not installed; vLLM needs it", SETUP)
    message = version if cuda in (None, "cpu") else f"{version}, for CUDA {cuda}"
    if not isinstance(build, Failure) and build[0] == "gpu" and cuda == "cpu":
        return error("torch", f"{message} has no CUDA, and vLLM here needs it", SETUP)
    return pinned("torch", "torch", version, message, pins)


def backends(machine: Machine, build: Build, packages: dict[str, str]) -> list[Finding]:
    """Report the backend that vLLM picks here with sinks, for a BF16 and an FP8 cache, and its cost."""
    if isinstance(build, Failure):
        return []
    topic, family, version = "attention backend", machine.family, build[1]
    if not machine.avx2:
        return [error(topic, f"vLLM's CPU build does not run on this CPU ({machine.name})", TOO_OLD_CPU)]
    try:
        profile.load("baseline").expected_backends(family, version)
    except Problem as problem:
        return [error(topic, problem.message, problem.remedy)]
    chosen = choice(family, version)
    if chosen is None:
        return []
    value = {"family": family, "vllm": version, "backend": chosen.backend}
    cost = chosen.fp8 if machine.fp8_kernels else chosen.fp8_widened
    fp8 = f"KV fp8: {chosen.backend}. {cost}"
    findings = [
        ok(topic, f"KV auto (BF16): {chosen.backend}. {chosen.bf16}", value | {"kv": "auto"}),
        warning(topic, fp8, chosen.better, value | {"kv": "fp8"})
        if chosen.better
        else ok(topic, fp8, value | {"kv": "fp8"}),
    ]
    if chosen.cubins:
        findings += _cubins(chosen.backend, packages.get("flashinfer-python"), packages.get("flashinfer-cubin"))
    return findings


def _cubins(backend: str, flashinfer_version: str | None, version: str | None) -> list[Finding]:
    """Check NVIDIA's prebuilt kernels, without which vLLM does not take FlashInfer for sinks."""
    if version and version == flashinfer_version:
        return []
    message = (
        f"flashinfer-cubin {version} does not go with FlashInfer {flashinfer_version}"
        if version
        else f"no flashinfer-cubin: {backend} is taken only if NVIDIA's artifactory answers when a server starts;"
        " else vLLM silently takes another, and `serve` ends the run"
    )
    remedy = f"pip install --no-deps flashinfer-cubin=={flashinfer_version or 'VERSION'}"
    return [warning("attention backend", message, remedy, {"flashinfer-cubin": version})]


def decoder(machine: Machine, status: Status | Failure | None) -> Finding:
    """Report the decoder that profile fp8 takes here, and why. status: of this GPU's certificate."""
    certified = status.decoder if isinstance(status, Status) else None
    choice = choose(profile.load("fp8"), machine.family, lambda: certified)
    return ok("decoder", f"fp8 takes {choice.decoder} here: {choice.reason}", choice._asdict())


def certificate(machine: Machine, status: Status | Failure) -> Finding:
    """Report the certificate of this GPU: a warning where profile fp8 would use a valid one."""
    topic = "certificate"
    if isinstance(status, Failure):
        return warning(topic, status.message, status.remedy)
    value = status.model_dump(mode="json", include={"state", "reason"})
    if status.state == "valid":
        return ok(topic, f"{status.reason}, certified {status.certificate.created:%Y-%m-%d}", value)
    message = status.reason if status.state == "none" else f"{status.state}: {status.reason}"
    if profile.load("fp8").requested_decoder(machine.family) != "certified" and status.state == "none":
        return ok(topic, f"{message}; profile fp8 needs none on {machine.family}", value)
    move = "move that file away, then " if status.state == "edited" else ""
    return warning(topic, message, f"{move}run: {COMMAND}", value)


def model(need: Need) -> Finding:
    """Check that the profiles' default model is on this machine; without it they need a --model."""
    if need.missing:
        return error("model", need.missing.message, need.missing.remedy)
    return ok("model", f"{need.model}, weights {(need.weight_bytes or 0) / GIB:.1f} GiB")


def memory(need: Need, machine: Machine, page_cache_bytes: int, users: list[str]) -> Finding:
    """Check that the profiles' default model fits now, as preflight decides it.

    On unified memory, the page cache counts as in use.
    """
    requirement = f"{', '.join(need.profiles)}: {need.model} takes {need.bytes / GIB:.1f} GiB ({need.detail})"
    message = f"{machine.free_bytes / GIB:.1f} GiB free; {requirement}"
    value = {
        "free_bytes": machine.free_bytes,
        "needed_bytes": need.bytes,
        "unified": machine.unified,
        "users": users,
        "page_cache_bytes": page_cache_bytes,
    }
    device = "cpu" if machine.family == "cpu" else "gpu"
    lack = lacking(device, need.weight_bytes or 0, need.bytes, machine.free_bytes)
    if lack == "share":
        message += f", and its weights alone {need.weight_bytes / GIB:.1f} GiB"
        remedy = "give --model openai/gpt-oss-20b, or more memory: -- --gpu-memory-utilization 0.9"
        return error("memory", message, remedy, value)
    if lack == "free":
        message += f"; in use by {', '.join(users) or 'programs that the driver does not name'}"
        lower = "" if device == "cpu" else ", or take less: -- --gpu-memory-utilization 0.5"
        return error("memory", message, f"end programs that you do not need{lower}", value)
    if machine.unified and machine.free_bytes - page_cache_bytes < need.bytes:
        message += f"; {page_cache_bytes / GIB:.1f} GiB of it is page cache, which the GPU does not always get"
        remedy = "empty the page cache before you serve: sync; echo 3 | sudo tee /proc/sys/vm/drop_caches"
        return warning("memory", message, remedy, value)
    return ok("memory", message, value)


def disk(folder: Folder) -> Finding:
    """Check that a folder can be written, and has room for a run."""
    used = sum(folder.used_bytes.values())
    holds = f", holds {used / GIB:.1f} GiB" if used > GIB // 20 else ""
    message = f"{folder.path}: {folder.free_bytes / GIB:.1f} GiB free{holds}"
    value = {"path": folder.path, "free_bytes": folder.free_bytes, "used_bytes": folder.used_bytes}
    if not folder.writable:
        remedy = "change its permissions, or those of its parent folder"
        return error(folder.role, f"{folder.path} cannot be written", remedy, value)
    if folder.free_bytes < RUN_FOLDER_BYTES:
        message += f", needs {RUN_FOLDER_BYTES / GIB:.1f}"
        return error(folder.role, message, "free some space on that disk", value)
    return ok(folder.role, message, value)


def port(number: int, user: str | None) -> Finding:
    """Check that the default port is free; --port selects another."""
    value = {"port": number, "user": user}
    if user is None:
        return ok("port", f"{number} is free", value)
    return warning("port", f"{number} is taken by {user}", "end it, or serve on another: --port", value)


def pinned(
    topic: str, distribution: str, version: str, message: str, pins: dict[str, str], details: dict | None = None
) -> Finding:
    """Check an installed version against the one that vLLM requires. details: more of the finding's value."""
    pin = pins.get(distribution)
    value = {"version": version, "pin": pin, **(details or {})}
    if pin and version.split("+")[0] != pin:
        return warning(topic, f"{message}; vLLM asks for {pin}", SETUP, value)
    return ok(topic, message, value)


def _dotted(release: Release) -> str:
    return f"{release[0]}.{release[1]}"
