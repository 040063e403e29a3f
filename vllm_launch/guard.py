"""Refuse arguments and variables that open the server, load code, hold secrets, or that the launcher sets itself.

vLLM's parser accepts `_` for `-`, any unambiguous prefix of an option, short options, and `--option.key value` for
JSON. So names are compared as `arguments.canonical` writes them, a prefix counts as the whole option, and keys inside
JSON are checked too. Options that only change the engine pass.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress

from flashinfer_patches.errors import Problem
from vllm_launch.redaction import is_secret

CODE = (
    "trust-remote-code",
    "model-class-overrides",
    "worker-cls",
    "worker-extension-cls",
    "scheduler-cls",
    "logits-processors",
    "io-processor-plugin",
    "middleware",
    "tool-parser-plugin",
    "reasoning-parser-plugin",
    "distributed-executor-backend",
    "ec-manager-config",
    "log-config-file",
    "inductor-passes",
)
# (what it does, what to do instead, options)
REFUSED = (
    (
        "is set by the launcher",
        "give --model, --host and --port to fp8-sinks itself, before the --",
        ("model", "served-model-name", "host", "port"),
    ),
    (
        "would open the server past --host and --port",
        "leave it out; a proxy of your own can stand in front of the server",
        (
            *("uds", "grpc", "grpc-port", "headless", "api-server-count", "nnodes", "node-rank"),
            *("master-addr", "master-port", "data-parallel-address", "data-parallel-rpc-port", "data-parallel-backend"),
            *("data-parallel-rank", "data-parallel-start-rank", "data-parallel-size-local", "data-parallel-hybrid-lb"),
            *("data-parallel-external-lb", "data-parallel-multi-port-external-lb", "data-parallel-supervisor-port"),
            *("kv-transfer-config", "kv-events-config", "ec-transfer-config", "weight-transfer-config"),
            *("fault-tolerance-config", "profiler-config", "otlp-traces-endpoint", "tool-server", "allowed-origins"),
            *("allowed-local-media-path", "trust-request-chat-template", "trust-request-mm-kwargs"),
        ),
    ),
    (
        "changes the address that is asked, http on --host and --port",
        "leave it out; a proxy of your own can stand in front of the server",
        ("ssl-keyfile", "ssl-certfile", "ssl-ca-certs", "ssl-cert-reqs", "ssl-ciphers", "enable-ssl-refresh"),
    ),
    ("would load code into the server", "leave it out: a server runs only vLLM's code and ours", CODE),
    (
        "is a secret, and every user can read a command line",
        "set VLLM_API_KEY in your own environment; an offline server needs no other secret",
        ("api-key", "hf-token"),
    ),
    ("reads options from a file, past every check", "write them in a profile", ("config",)),
    ("changes the log that the launcher reads", "leave it out", ("log-level", "logging-config")),
    ("has a second name", "write --gpu-memory-utilization", ("device-memory-utilization",)),
)
OPTIONS = {option: (does, remedy) for does, remedy, options in REFUSED for option in options}
# Options that plan and preflight read by their whole name: a prefix would escape its checks.
PREFLIGHT_OPTIONS = ("kv-cache-dtype", "kv-cache-dtype-skip-layers", "gpu-memory-utilization", "attention-backend")
# Options that pass although they are a prefix of an option above.
ALLOWED_PREFIXES = {*PREFLIGHT_OPTIONS, "data-parallel-size", "reasoning-parser"}

# Keys inside JSON, as `_check_key` writes them: classes to import, and folders to write into.
_CODE_KEY = re.compile(r".*-cls|(.*-)?module-path|.*-plugin")
_WRITES = ("cache-dir", "debug-dump-path")
_INDUCTOR = "inductor-compile-config"  # its strings name compilers and folders, such as cpp.cxx

_NAME = re.compile(r"[a-z][a-z0-9-]*(\.[A-Za-z0-9_.+-]+)?")
_NUMBER = re.compile(r"-\d*\.?\d+")

# Variables that a profile may set: those of the engine and its libraries that name no file, program or address.
_ENGINE_VARIABLE = re.compile(
    r"OMP_(NUM_THREADS|PROC_BIND|PLACES)|MKL_NUM_THREADS|KMP_(AFFINITY|BLOCKTIME)|TOKENIZERS_PARALLELISM"
    r"|TORCHDYNAMO_DISABLE|PYTORCH_(CUDA_)?ALLOC_CONF|CUDA_(VISIBLE_DEVICES|DEVICE_ORDER|LAUNCH_BLOCKING|MODULE_LOADING)"
    r"|NCCL_(DEBUG|P2P_DISABLE|SHM_DISABLE|IB_DISABLE|CUMEM_ENABLE|NVLS_ENABLE)"
    r"|VLLM_(ATTENTION_BACKEND|CPU_KVCACHE_SPACE|CPU_OMP_THREADS_BIND|MAX_TOKENS_PER_EXPERT_FP4_MOE)"
    r"|VLLM_USE_(?!RUST|MODELSCOPE|PRECOMPILED)[A-Z0-9_]+"
    r"|VLLM_(ENABLE|DISABLE|FLASHINFER|FUSED_MOE|MARLIN)_[A-Z0-9_]+(?<!_DIR)(?<!_PATH)"
)


def check_arguments(arguments: Mapping) -> None:
    """Raise Problem("profile") for an argument that must not reach vLLM; no message contains a value.

    arguments: value by canonical name, all layers merged.
    """
    for name, value in arguments.items():
        shown = name.partition("=")[0]
        if name.startswith("-"):
            message = f"{shown}: short options are not accepted"
            raise Problem("profile", message, "write the long option: --tensor-parallel-size 2")
        if not _NAME.fullmatch(name):
            raise Problem("profile", f"not the name of a vLLM argument: {shown!r}", "write it as vllm --help=all does")
        option, dot, key = name.partition(".")
        _check_option(option)
        if dot and isinstance(value, bool):  # vLLM's parser would take the next word as its value
            raise Problem(
                "profile", f"--{name} has no value", f"write a map: {option}: {{{key}: {str(value).lower()}}}"
            )
        for word in value if isinstance(value, list) else [value]:
            if isinstance(word, str) and word.startswith("-") and not _NUMBER.fullmatch(word):
                raise Problem("profile", f"--{name}: a value that starts with a dash", "write each option separately")
        for inner, leaf in _leaves(key, value):
            _check_key(name, inner, leaf)


def check_environment(environment: Mapping[str, str], ours: Collection[str]) -> None:
    """Raise Problem("profile") for a variable that a profile must not set; no message contains a value.

    ours: the names that the launcher sets itself.
    """
    for name in environment:
        if name in ours:
            remedy = "take it out of the profile; `decoder`, `kv_format` and `kv_scales` are keys of the profile itself"
            raise Problem("profile", f"env: {name} is set by the launcher", remedy)
        if is_secret(name):
            message = f"env: {name} looks like a secret, and every user can read a profile"
            raise Problem("profile", message, "take it out of the profile")
        if not _ENGINE_VARIABLE.fullmatch(name):
            message = f"env: {name} is not among the variables that a profile may set"
            raise Problem("profile", message, "set it in your own environment, or ask for it to be allowed in guard.py")


def _check_option(option: str) -> None:
    option = option.removeprefix("no-")
    if option in ALLOWED_PREFIXES:
        return
    candidates = [option] if option in OPTIONS else [*OPTIONS, *PREFLIGHT_OPTIONS]
    full_name = next((name for name in candidates if name.startswith(option)), None)
    if full_name is None:
        return
    does, remedy = OPTIONS.get(full_name, ("is checked by its whole name", f"write --{full_name}"))
    prefix_of = "" if full_name == option else f" is short for --{full_name}, which"
    raise Problem("profile", f"--{option}{prefix_of} {does}", remedy)


def _check_key(name: str, key: str, leaf: object) -> None:
    """Check a value and the dotted path of keys to it; the path is empty for the argument itself."""
    *_, last = parts = [part.rstrip("+") for part in key.split(".")]
    for part in parts:
        if is_secret(part):
            raise Problem("profile", f"--{name}: {part} looks like a secret", OPTIONS["api-key"][1])
        if part.replace("_", "-") in _WRITES:
            raise Problem("profile", f"--{name}: {part} would write outside the folders of the run", "leave it out")
    if _loads_code(name, [part.replace("_", "-") for part in parts], leaf):
        does, remedy = OPTIONS[CODE[0]]
        if last in ("", "model"):
            remedy = "name a draft model by its folder, such as ./draft, or as owner/name"
        raise Problem("profile", f"--{name}: {last or 'its value'} {does}", remedy)


def _loads_code(name: str, parts: list[str], leaf: object) -> bool:
    """Whether vLLM would import or run the code that `leaf` names. parts: the parts of its key, with dashes."""
    if leaf == "custom_class" or any(part in CODE or _CODE_KEY.fullmatch(part) for part in parts):
        return True
    if not isinstance(leaf, str):
        return False
    if parts[-1] == "backend":
        return bool(re.search("[.:]", leaf))
    if name.startswith("spec") and parts[-1] in ("", "model"):  # --spec-model, --speculative-config
        return _is_import_path(leaf)
    return _INDUCTOR in parts


def _is_import_path(text: str) -> bool:
    """Whether vLLM would import the name of a draft model as a class (SpeculativeConfig)."""
    return "." in text and all(part.isidentifier() for part in text.split("."))


def _leaves(key: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield every dotted key in a value with what it holds, in JSON text too."""
    pending = [(key, value)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, str) and value.lstrip().startswith(("{", "[", '"')):
            with suppress(ValueError, RecursionError):  # not JSON: vLLM reports it
                value = json.loads(value)
        yield key, value
        if isinstance(value, dict):
            pending += [(f"{key}.{inner}", held) for inner, held in value.items()]
        elif isinstance(value, list):
            pending += [(key, held) for held in value]
