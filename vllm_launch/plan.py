"""From a profile to the exact command and environment of one server."""

import os
import secrets
import shlex
import sys
from pathlib import Path

from flashinfer_patches import jit_cache, package
from vllm_launch import arguments, model, software
from vllm_launch.errors import Problem
from vllm_launch.machine import Machine, detect
from vllm_launch.model import Model
from vllm_launch.profile import Argument, Device, Profile, Strict

LOOPBACK = ("127.0.0.1", "localhost", "::1")
KERNEL_CACHE = "FLASHINFER_WORKSPACE_BASE"
CACHE_VARIABLES = {
    KERNEL_CACHE: "flashinfer",
    "VLLM_CACHE_ROOT": "vllm",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "CUDA_CACHE_PATH": "cuda",  # the driver's, of what it and NVRTC compile
    "FP8_SINKS_KERNEL_CACHE": "lowp",
}
FIXED_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "NO_PROXY": "127.0.0.1,localhost",
    "FP8_SINKS_PLUGIN": "1",
}


class Plan(Strict):
    """One server, ready to be checked and started.

    command: the words after the interpreter's environment; environment: what is added to the caller's.
    nonce: a second served name that only this server knows. expected_backends: see Profile.
    """

    profile: str
    device: Device
    vllm_version: str
    machine: Machine
    model: Model
    host: str
    port: int
    nonce: str
    arguments: dict[str, Argument]
    command: list[str]
    environment: dict[str, str]
    cache_root: str
    expected_backends: list[str]
    start_timeout_s: int

    @property
    def kv_cache_dtype(self) -> str:
        return str(self.arguments["kv-cache-dtype"])

    @property
    def kv_skip_layers(self) -> list[str]:
        layers = self.arguments.get("kv-cache-dtype-skip-layers", [])
        return [layers] if isinstance(layers, str) else layers

    @property
    def url(self) -> str:
        return f"http://{self.host if self.host not in ('0.0.0.0', '::') else '127.0.0.1'}:{self.port}"


def make(
    profile: Profile,
    *,
    port: int,
    cache_root: Path,
    model_path: str | None = None,
    host: str = "127.0.0.1",
    overrides: list[str] | None = None,
    extra: dict[str, Argument] | None = None,
) -> Plan:
    """Decide everything about one server of `profile` on this machine. Raises Problem, PatchError; starts nothing.

    overrides: a user's words for vLLM; extra: what the caller itself needs, over everything else.
    """
    device, vllm_version = software.vllm_build()
    machine = _machine(device)
    settings = profile.devices[device]
    found = model.find(model_path or model.of_default(settings.default_model))
    merged = arguments.merge(
        profile.vllm,
        settings.vllm,
        profile.model_settings(found.name).vllm,
        arguments.parse(overrides or []),
        extra or {},
    )
    nonce = f"fp8-sinks-{secrets.token_hex(8)}"
    return Plan(
        profile=profile.name,
        device=device,
        vllm_version=vllm_version,
        machine=machine,
        model=found,
        host=host,
        port=port,
        nonce=nonce,
        arguments=merged,
        command=[
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", found.path, "--served-model-name", found.name, nonce),
            *("--host", host, "--port", str(port)),
            *arguments.words(merged),
        ],
        environment=FIXED_ENVIRONMENT
        | {name: str(cache_root / folder) for name, folder in CACHE_VARIABLES.items()}
        | _kernel_cache(cache_root / CACHE_VARIABLES[KERNEL_CACHE])
        | {"FP8_SINKS_RUN": nonce}
        | settings.env,
        cache_root=str(cache_root),
        expected_backends=profile.expected_backends(machine.family, vllm_version),
        start_timeout_s=settings.start_timeout_s,
    )


def child_environment(plan: Plan) -> dict[str, str]:
    """The environment of the server process; the key stays only where the server is open to others."""
    # FlashInfer's builds look for the environment's ninja on the path.
    inherited = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    if plan.host in LOOPBACK:
        inherited.pop("VLLM_API_KEY", None)
    return inherited | plan.environment


def as_shell(plan: Plan) -> str:
    """The plan as one line that a shell runs."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in plan.environment.items()]
    return " ".join(["env", *variables, shlex.join(plan.command)])


def _kernel_cache(root: Path) -> dict[str, str]:
    """Where an installed FlashInfer keeps its kernels: below `root`, apart for each patch set and version."""
    return {KERNEL_CACHE: str(jit_cache.workspace(root))} if package.installed() else {}


def _machine(device: Device) -> Machine:
    try:
        return detect(device)
    except LookupError as error:
        raise Problem(
            "software",
            f"this environment has vLLM for CUDA, but {error}",
            "mend the driver, or set up for the CPU in a new environment: make setup DEVICE=cpu",
        ) from error
