"""Plan one server: its exact command and environment, from a profile."""

import ipaddress
import os
import secrets
import shlex
import sys
from pathlib import Path

from flashinfer_patches import jit_cache, package
from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Strict
from vllm_launch import arguments, certificate, guard, model, software
from vllm_launch.decoder import choice, contract
from vllm_launch.machine import Machine, detect
from vllm_launch.marks import NONCE_VARIABLE
from vllm_launch.model import Model
from vllm_launch.profile import Argument, Decoder, Device, Profile
from vllm_launch.redaction import is_secret

KERNEL_CACHE = "FLASHINFER_WORKSPACE_BASE"
CACHE_VARIABLES = {
    KERNEL_CACHE: "flashinfer",
    "VLLM_CACHE_ROOT": "vllm",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "CUDA_CACHE_PATH": "cuda",  # the driver's, for what it and NVRTC compile
    "FP8_SINKS_KERNEL_CACHE": "lowp",
}
KEY_GATE = "vllm_launch.plugin.key_gate.RequireKey"
# The same value for both spellings of NO_PROXY: if both are set, programs differ in which they read.
UNPROXIED = "127.0.0.1,localhost,::1,[::1]"
FIXED_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "NO_PROXY": UNPROXIED,
    "no_proxy": UNPROXIED,
    contract.PLUGIN: "1",
    "PYTHONSAFEPATH": "1",  # `python -m` would import modules from the run folder, which any user may write
    "SPT_NOENV": "1",  # keeps setproctitle, with which vLLM renames its processes, from overwriting their environment
}
# Variables that a server must not inherit: they would defeat the launcher's checks.
DROPPED = (
    # the log that `resolved` reads
    *("VLLM_CONFIGURE_LOGGING", "VLLM_LOGGING_CONFIG_PATH", "VLLM_LOGGING_LEVEL", "VLLM_LOGGING_PREFIX"),
    *("VLLM_LOGGING_STREAM", "VLLM_LOGGING_COLOR", "FORCE_COLOR"),
    "VLLM_PLUGINS",  # a list without our plugin leaves it out
    # routes without a key, and another model than the one that was checked
    *("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
    *("VLLM_LORA_RESOLVER_CACHE_DIR", "VLLM_LORA_RESOLVER_HF_REPO_LIST", "VLLM_MEDIA_CONNECTOR"),
    "VLLM_MODEL_REDIRECT_PATH",
    *("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "VLLM_USE_RUST_FRONTEND"),  # how the server ends
    *choice.VARIABLES,  # the profile alone names the decoder
    contract.CERTIFYING,
)
# Holds the environment's ninja, which FlashInfer's builds look up on PATH.
PROGRAMS = Path(sys.executable).parent


class Plan(Strict):
    """One server, ready to be checked and started.

    command: the words to execute. environment: the variables to add to the caller's. nonce: a second served model name,
    which only this server has. decoder: with the reason for it. kv_format: as our plugin will record it, None if vLLM
    serves it by itself. kv_scales: the path of a scale file. expected_backends: see Profile; our own for a decoder that
    is not stock.
    """

    profile: str
    device: Device
    vllm_version: str
    machine: Machine
    model: Model
    host: str
    port: int
    nonce: str
    decoder: Decoder
    decoder_reason: str
    kv_format: str | None
    kv_scales: str | None
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

    overrides: a user's words for vLLM. extra: arguments that the caller needs, on top of all others.
    """
    device, vllm_version = software.vllm_build()
    machine = _machine(device)
    settings = profile.device_settings(device)
    served = model.find(model_path or model.of_default(settings.default_model))
    layers = (profile.vllm, settings.vllm, profile.model_settings(served.name).vllm, arguments.parse(overrides or []))
    chosen, reason = choice.choose(profile, machine.family, certificate.decoder)
    requested = _checked(arguments.merge(*layers))
    merged = arguments.merge(requested, _backend_argument(requested, chosen), extra or {})
    guard.check_environment(settings.env, {*FIXED_ENVIRONMENT, *CACHE_VARIABLES, *choice.VARIABLES})
    nonce = f"fp8-sinks-{secrets.token_hex(8)}"
    # A path in the server's working directory, the run folder; a name of its own for every start.
    kv_format = choice.kv_format(machine.family, chosen, str(merged["kv-cache-dtype"]), _stored(profile, merged))
    ours = choice.environment(machine.family, chosen, kv_format, profile.kv_scales, record=f"{nonce}.json")
    return Plan(
        profile=profile.name,
        device=device,
        vllm_version=vllm_version,
        machine=machine,
        model=served,
        host=host,
        port=port,
        nonce=nonce,
        decoder=chosen,
        decoder_reason=reason,
        kv_format=kv_format,
        kv_scales=profile.kv_scales,
        arguments=merged,
        command=[
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", served.path, "--served-model-name", served.name, nonce),
            *("--host", host, "--port", str(port)),
            *([] if is_loopback(host) else ["--middleware", KEY_GATE]),
            *arguments.words(merged),
        ],
        environment=settings.env | FIXED_ENVIRONMENT | _caches(cache_root) | ours | {NONCE_VARIABLE: nonce},
        cache_root=str(cache_root),
        expected_backends=[choice.BACKEND]
        if chosen != "stock"
        else profile.expected_backends(machine.family, vllm_version),
        start_timeout_s=settings.start_timeout_s,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on `host`; forms such as 127.1 or 0 count as open to others."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def child_environment(plan: Plan) -> dict[str, str]:
    """The environment of the server process: the caller's without DROPPED and secrets, with the plan's on top."""
    return inherited_environment(plan.host) | plan.environment


def inherited_environment(host: str = "127.0.0.1") -> dict[str, str]:
    """The caller's environment without DROPPED and secrets; with VLLM_API_KEY if a server on `host` needs one."""
    dropped = {*DROPPED, *_inherited_secrets(host)}
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    return inherited | {"PATH": f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}"}


def as_shell(plan: Plan) -> str:
    """Write the plan as a shell command that starts the server in the same environment; contains no secret."""
    dropped = [word for name in (*DROPPED, *_inherited_secrets(plan.host)) for word in ("-u", shlex.quote(name))]
    path = f'PATH={shlex.quote(str(PROGRAMS))}{os.pathsep}"$PATH"'
    variables = [f"{name}={shlex.quote(value)}" for name, value in plan.environment.items()]
    return " ".join(["env", *dropped, path, *variables, shlex.join(plan.command)])


def _inherited_secrets(host: str) -> list[str]:
    """Names of the caller's secrets, except VLLM_API_KEY if a server on `host` is open to others."""
    needed = set() if is_loopback(host) else {"VLLM_API_KEY"}
    return sorted(name for name in os.environ if is_secret(name) and name not in needed)


def _checked(merged: dict[str, Argument]) -> dict[str, Argument]:
    """Return the arguments. Raise Problem("profile") for a refused one, or a KV cache dtype that is no name."""
    guard.check_arguments(merged)
    dtype, layers = merged.get("kv-cache-dtype"), merged.get("kv-cache-dtype-skip-layers", [])
    if not isinstance(dtype, str):
        raise Problem(
            "profile",
            f"kv-cache-dtype is {dtype!r}, not a name such as auto or fp8",
            "write the name of a dtype; in YAML, off, on, yes and no are booleans unless they are quoted",
        )
    if not isinstance(layers, str | list):
        raise Problem("profile", f"kv-cache-dtype-skip-layers is {layers!r}, not layers", "write a list of layers")
    return merged


def _stored(profile: Profile, merged: dict[str, Argument]) -> str:
    """The profile's kv_format. Raise Problem("profile") for int8 in a KV cache of another dtype than fp8."""
    dtype = merged["kv-cache-dtype"]
    if profile.kv_format == "int8" and dtype not in ("fp8", "fp8_e4m3"):
        message = f"kv_format: int8 with --kv-cache-dtype {dtype}: int8 takes the bytes of dtype fp8"
        raise Problem("profile", message, "write `kv-cache-dtype: fp8`, or `kv_format: e4m3`")
    return profile.kv_format


def _backend_argument(requested: dict[str, Argument], chosen: Decoder) -> dict[str, Argument]:
    """The argument that selects our attention backend; none for decoder stock.

    Raises Problem("profile") for another backend than the decoder's, and for ours without a decoder.
    """
    named = requested.get("attention-backend")
    if chosen != "stock" and named is not None:
        message = f"--attention-backend {named}: decoder {chosen} has a backend of its own"
        raise Problem("profile", message, "leave it out, or serve with `decoder: stock`, as profile fp8-stock does")
    if str(named).upper() == choice.BACKEND:
        message = f"--attention-backend {named} is set by the launcher"
        raise Problem("profile", message, "leave it out, and write `decoder: lowp` or `decoder: flashinfer`")
    return {} if chosen == "stock" else {"attention-backend": choice.BACKEND}


def _caches(root: Path) -> dict[str, str]:
    """The variables of the caches; an installed FlashInfer's has a folder for each patch set and version."""
    folders = {name: root / folder for name, folder in CACHE_VARIABLES.items()}
    if package.installed():
        folders[KERNEL_CACHE] = jit_cache.workspace(folders[KERNEL_CACHE])
    return {name: str(folder) for name, folder in folders.items()}


def _machine(device: Device) -> Machine:
    try:
        return detect(device)
    except LookupError as error:
        raise Problem(
            "software",
            f"this environment has vLLM for CUDA, but {error}",
            "repair the driver, or set up for the CPU in a new environment: make setup DEVICE=cpu",
        ) from error
