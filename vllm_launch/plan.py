"""From a profile to the exact command and environment of one server."""

import ipaddress
import os
import secrets
import shlex
import sys
from pathlib import Path

from flashinfer_patches import jit_cache, package
from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Strict
from vllm_launch import arguments, guard, model, software
from vllm_launch.machine import Machine, detect
from vllm_launch.marks import NONCE_VARIABLE
from vllm_launch.model import Model
from vllm_launch.profile import Argument, Device, Profile
from vllm_launch.redaction import is_secret

KERNEL_CACHE = "FLASHINFER_WORKSPACE_BASE"
CACHE_VARIABLES = {
    KERNEL_CACHE: "flashinfer",
    "VLLM_CACHE_ROOT": "vllm",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "CUDA_CACHE_PATH": "cuda",  # the driver's, of what it and NVRTC compile
    "FP8_SINKS_KERNEL_CACHE": "lowp",
}
KEY_GATE = "vllm_launch.plugin.key_gate.RequireKey"
# The same for both spellings of NO_PROXY: where both are set, some programs read one and some the other.
UNPROXIED = "127.0.0.1,localhost,::1,[::1]"
FIXED_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "NO_PROXY": UNPROXIED,
    "no_proxy": UNPROXIED,
    "FP8_SINKS_PLUGIN": "1",
    "PYTHONSAFEPATH": "1",  # `python -m` would take modules from the run folder, which may be anybody's
    "SPT_NOENV": "1",  # setproctitle, by which vLLM renames its processes, leaves their environment readable
}
# Variables that a server must not inherit, since they would defeat what the launcher guards.
DROPPED = (
    # how the log that we read is written
    *("VLLM_CONFIGURE_LOGGING", "VLLM_LOGGING_CONFIG_PATH", "VLLM_LOGGING_LEVEL", "VLLM_LOGGING_PREFIX"),
    *("VLLM_LOGGING_STREAM", "VLLM_LOGGING_COLOR", "FORCE_COLOR"),
    "VLLM_PLUGINS",  # a list without our plugin leaves it out
    # routes without a key, and another model than the one that was checked
    *("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
    *("VLLM_LORA_RESOLVER_CACHE_DIR", "VLLM_LORA_RESOLVER_HF_REPO_LIST", "VLLM_MEDIA_CONNECTOR"),
    "VLLM_MODEL_REDIRECT_PATH",
    *("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "VLLM_USE_RUST_FRONTEND"),  # when and how the server ends
)
# FlashInfer's builds look for the environment's ninja on the path.
PROGRAMS = Path(sys.executable).parent


class Plan(Strict):
    """One server, ready to be checked and started.

    command: its command line; environment: variables added to the caller's. nonce: a second served name that only
    this server has. expected_backends: see Profile.
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
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


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
    """Plan one server of `profile` on this machine; starts nothing. Raises Problem.

    overrides: a user's command-line words for vLLM; extra: the caller's own arguments, which win over all others.
    """
    device, vllm_version = software.vllm_build()
    machine = _machine(device)
    settings = profile.device_settings(device)
    served = model.find(model_path or model.of_default(settings.default_model))
    merged = arguments.merge(
        profile.vllm,
        settings.vllm,
        profile.model_settings(served.name).vllm,
        arguments.parse(overrides or []),
    )
    guard.check_arguments(merged)
    guard.check_environment(settings.env, {*FIXED_ENVIRONMENT, *CACHE_VARIABLES})
    _check_kv_cache(merged)
    merged = arguments.merge(merged, extra or {})
    nonce = f"fp8-sinks-{secrets.token_hex(8)}"
    return Plan(
        profile=profile.name,
        device=device,
        vllm_version=vllm_version,
        machine=machine,
        model=served,
        host=host,
        port=port,
        nonce=nonce,
        arguments=merged,
        command=[
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", served.path, "--served-model-name", served.name, nonce),
            *("--host", host, "--port", str(port)),
            *([] if is_loopback(host) else ["--middleware", KEY_GATE]),
            *arguments.words(merged),
        ],
        environment=settings.env
        | FIXED_ENVIRONMENT
        | {name: str(cache_root / folder) for name, folder in CACHE_VARIABLES.items()}
        | _kernel_cache(cache_root / CACHE_VARIABLES[KERNEL_CACHE])
        | {NONCE_VARIABLE: nonce},
        cache_root=str(cache_root),
        expected_backends=profile.expected_backends(machine.family, vllm_version),
        start_timeout_s=settings.start_timeout_s,
    )


def is_loopback(host: str) -> bool:
    """Whether a server on `host` is open to this machine alone; odd forms such as 127.1 or 0 count as open to all."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def child_environment(plan: Plan) -> dict[str, str]:
    """The environment of the server process: the caller's without DROPPED and secrets, and the plan's."""
    dropped = {*DROPPED, *_inherited_secrets(plan)}
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    inherited["PATH"] = f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}"
    return inherited | plan.environment


def as_shell(plan: Plan) -> str:
    """The plan as one shell line, which gives the server the same environment; holds no secret."""
    dropped = [word for name in (*DROPPED, *_inherited_secrets(plan)) for word in ("-u", shlex.quote(name))]
    path = f'PATH={shlex.quote(str(PROGRAMS))}{os.pathsep}"$PATH"'
    variables = [f"{name}={shlex.quote(value)}" for name, value in plan.environment.items()]
    return " ".join(["env", *dropped, path, *variables, shlex.join(plan.command)])


def _inherited_secrets(plan: Plan) -> list[str]:
    """Names of the caller's variables that hold secrets, without VLLM_API_KEY where the server is not on loopback."""
    needed = set() if is_loopback(plan.host) else {"VLLM_API_KEY"}
    return sorted(name for name in os.environ if is_secret(name) and name not in needed)


def _check_kv_cache(merged: dict[str, Argument]) -> None:
    """Raise Problem("profile") unless the KV cache's dtype is set to a name: it decides what is checked."""
    dtype, layers = merged.get("kv-cache-dtype"), merged.get("kv-cache-dtype-skip-layers", [])
    if not isinstance(dtype, str):
        raise Problem(
            "profile",
            f"kv-cache-dtype is {dtype!r}, not a name such as auto or fp8",
            "write a name after it; in YAML, off, on, yes and no are booleans unless they are quoted",
        )
    if not isinstance(layers, str | list):
        raise Problem("profile", f"kv-cache-dtype-skip-layers is {layers!r}, not layers", "write a list of layers")


def _kernel_cache(root: Path) -> dict[str, str]:
    """The kernel cache of an installed FlashInfer: below `root`, a folder for each patch set and version."""
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
