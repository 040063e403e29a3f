"""What neither a profile nor a user's words may hand to vLLM: other ways in, foreign code, secrets, what is ours.

vLLM's parser takes `_` for `-`, any unambiguous beginning of an option, short options, and `--option.key value` for
JSON. So names are compared as `arguments.canonical` writes them, a beginning counts as the whole, and keys inside JSON
count too. What changes the engine alone passes. Whoever needs what is refused here starts vLLM without us.
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
    ("would load code into the server", "leave it out: a server runs vLLM's code and ours alone", CODE),
    (
        "is a secret, and a command line is open to all",
        "set VLLM_API_KEY in your own environment; an offline server needs no other secret",
        ("api-key", "hf-token"),
    ),
    ("reads options from a file, past every check", "write them in a profile", ("config",)),
    ("changes the log that is read back", "leave it out", ("log-level", "logging-config")),
    ("has a second name", "write --gpu-memory-utilization", ("device-memory-utilization",)),
)
OPTIONS = {option: (does, remedy) for does, remedy, options in REFUSED for option in options}
# Options that preflight reads: a beginning of them would pass it by.
READ = ("kv-cache-dtype", "kv-cache-dtype-skip-layers", "gpu-memory-utilization")
# Whole options that pass and are also the beginning of one above.
WHOLE = {*READ, "data-parallel-size", "reasoning-parser"}

# Keys inside JSON, as `_check_key` writes them: what is imported, and where files are written.
_CODE_KEY = re.compile(r".*-cls|(.*-)?module-path|.*-plugin")
_WRITES = ("cache-dir", "debug-dump-path")
_INDUCTOR = "inductor-compile-config"  # its texts name compilers and folders, such as cpp.cxx

_NAME = re.compile(r"[a-z][a-z0-9-]*(\.[A-Za-z0-9_.+-]+)?")
_NUMBER = re.compile(r"-\d*\.?\d+")

# What a profile may set: variables that the engine and its libraries read, and that name no file, program or address.
_ENGINE_VARIABLE = re.compile(
    r"OMP_(NUM_THREADS|PROC_BIND|PLACES)|MKL_NUM_THREADS|KMP_(AFFINITY|BLOCKTIME)|TOKENIZERS_PARALLELISM"
    r"|TORCHDYNAMO_DISABLE|PYTORCH_(CUDA_)?ALLOC_CONF|CUDA_(VISIBLE_DEVICES|DEVICE_ORDER|LAUNCH_BLOCKING|MODULE_LOADING)"
    r"|NCCL_(DEBUG|P2P_DISABLE|SHM_DISABLE|IB_DISABLE|CUMEM_ENABLE|NVLS_ENABLE)"
    r"|VLLM_(ATTENTION_BACKEND|CPU_KVCACHE_SPACE|CPU_OMP_THREADS_BIND|MAX_TOKENS_PER_EXPERT_FP4_MOE)"
    r"|VLLM_USE_(?!RUST|MODELSCOPE|PRECOMPILED)[A-Z0-9_]+"
    r"|VLLM_(ENABLE|DISABLE|FLASHINFER|FUSED_MOE|MARLIN)_[A-Z0-9_]+(?<!_DIR)(?<!_PATH)"
)


def check_arguments(arguments: Mapping) -> None:
    """Raise Problem("profile") for an argument that vLLM must not get; no message holds a value.

    arguments: canonical name to value, all layers merged.
    """
    for name, value in arguments.items():
        shown = name.partition("=")[0]
        if name.startswith("-"):
            what, remedy = f"{shown}: short options are not read here", "write the long one: --tensor-parallel-size 2"
            raise Problem("profile", what, remedy)
        if not _NAME.fullmatch(name):
            raise Problem("profile", f"not the name of a vLLM argument: {shown!r}", "write it as vllm --help=all does")
        option, dot, key = name.partition(".")
        _check_option(option)
        if dot and isinstance(value, bool):  # vLLM's parser would take the next option for its value
            raise Problem(
                "profile", f"--{name} has no value", f"write a map: {option}: {{{key}: {str(value).lower()}}}"
            )
        for word in value if isinstance(value, list) else [value]:
            if isinstance(word, str) and word.startswith("-") and not _NUMBER.fullmatch(word):
                raise Problem("profile", f"--{name}: a value that begins with a dash", "give each option by itself")
        for inner, leaf in _leaves(key, value):
            _check_key(name, inner, leaf)


def check_environment(environment: Mapping[str, str], ours: Collection[str]) -> None:
    """Raise Problem("profile") for a variable in a profile that is not on the list; no message holds a value.

    ours: the names that the launcher sets itself.
    """
    for name in environment:
        if name in ours:
            raise Problem("profile", f"env: {name} is set by the launcher", "take it out of the profile")
        if is_secret(name):
            what = f"env: {name} looks like a secret, and a profile is open to all"
            raise Problem("profile", what, "take it out of the profile")
        if not _ENGINE_VARIABLE.fullmatch(name):
            what = f"env: {name} is not among the variables that a profile may set"
            raise Problem("profile", what, "set it in your own environment, or ask for it to be allowed in guard.py")


def _check_option(option: str) -> None:
    option = option.removeprefix("no-")
    if option in WHOLE:
        return
    whole = option if option in OPTIONS else next((one for one in (*OPTIONS, *READ) if one.startswith(option)), None)
    if whole is None:
        return
    does, remedy = OPTIONS.get(whole, ("is checked by its whole name", f"write --{whole}"))
    short = "" if whole == option else f" is short for --{whole}, which"
    raise Problem("profile", f"--{option}{short} {does}", remedy)


def _check_key(name: str, key: str, leaf: object) -> None:
    """One value, and the keys on the way to it, with dots between: empty for the argument itself."""
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
    """Whether vLLM would import or run what `leaf` names. parts: of its key, with dashes."""
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
    """Whether vLLM takes the name of a draft model for a class to import (SpeculativeConfig)."""
    return "." in text and all(part.isidentifier() for part in text.split("."))


def _leaves(key: str, value: object) -> Iterator[tuple[str, object]]:
    """Every key in a value, JSON text among them, with what it holds."""
    pending = [(key, value)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, str) and value.lstrip().startswith(("{", "[", '"')):
            with suppress(ValueError, RecursionError):  # no JSON: vLLM will say so
                value = json.loads(value)
        yield key, value
        if isinstance(value, dict):
            pending += [(f"{key}.{inner}", held) for inner, held in value.items()]
        elif isinstance(value, list):
            pending += [(key, held) for held in value]
