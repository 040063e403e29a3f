"""The settings that a running vLLM server chose, read from its log and from our plugin's record.

A profile requests a backend and a KV cache dtype; vLLM may pick another backend without failing. `read` turns the log
of a started server (default INFO level) and its record, if it has a decoder that is not stock, into a `Resolved`, and
`mismatches` compares it with the request.

The rules are written from the sources of vLLM 0.26.0, 0.32.0 (its CPU build) and 0.33.0.
"""

from __future__ import annotations

import ast
import re
from typing import Literal, NamedTuple

from flashinfer_patches.strict import Record
from vllm_launch.decoder.record import DecoderRecord
from vllm_launch.profile import Decoder

SUPPORTED_VERSIONS = ("0.26.0", "0.32.0", "0.33.0")


class Resolved(Record):
    """The settings that one server chose. None: this version or platform does not log it.

    device: "cuda" or "cpu". model_dtype: the dtype of activations, for example "bfloat16".
    max_model_len, kv_capacity_tokens: tokens.
    attention_backends: names of vLLM's AttentionBackendEnum, each once, in the order they were chosen.
    flash_attention_version: 2, 3 or 4. Whether FLASH_ATTN quantises the query is not logged.
    flashinfer: for each kind of KV cache group: query dtypes, decode kernel, cache dtype.
    kv_cache_dtype: as vLLM logs it; "auto" means model_dtype, "fp8" means fp8_e4m3.
    kv_skip_layers: the layers that keep model_dtype: numbers, or "sliding_window".
    kv_block_sizes: tokens per block, one number for each KV cache group.
    moe_backend: the kernels of the experts, for example "MARLIN".
    cuda_graphs: the mode captured (FULL_AND_PIECEWISE, PIECEWISE, FULL, FULL_DECODE_ONLY) or "none".
    cpu_cache_writer: whether our rounding CPU cache writer is active.
    cpu_attention: how a CPU reads a cache of codes: by vLLM's own FP8 kernel, or widened by our plugin for its kernel
    of model_dtype.
    decoder, prefill, cache_writer, kv_format, kv_scales: as our plugin recorded them, see DecoderRecord, on a CPU as it
    logged the last two; "stock" and None without its attention backend.
    """

    RETIRED = ("max_concurrency", "kv_cache_gib", "weights_gib")

    vllm_version: str
    device: str
    model_dtype: str
    max_model_len: int
    attention_backends: list[str]
    flash_attention_version: int | None
    flashinfer: list[str]
    kv_cache_dtype: str
    kv_skip_layers: list[str]
    kv_capacity_tokens: int
    kv_block_sizes: list[int] | None
    moe_backend: str | None
    cuda_graphs: str
    cpu_cache_writer: bool
    cpu_attention: Literal["native", "widened"] | None = None
    decoder: Decoder = "stock"
    prefill: str | None = None
    cache_writer: str | None = None
    kv_format: str | None = None
    kv_scales: str | None = None


Records = list[tuple[str, str]]
Rule = tuple[str, re.Pattern[str]]


def _rule(files: str, pattern: str) -> Rule:
    """A pattern of a log message. files: base names of the sources that log it, separated by spaces."""
    return files, re.compile(pattern)


ANSI = re.compile(r"\x1b\[[0-9;]*m")
# logger.py, _FORMAT. The prefix "(EngineCore pid=1) " comes from utils/system_utils.py in 0.26.0 and belongs
# to _FORMAT from 0.32.0 on. The DEBUG level writes folders in front of the file.
_RECORD = re.compile(
    r"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d "
    r"\[(?:[^\]\s]*/)?(?P<file>\w+\.py):\d+\] (?P<message>.*)"
)

# Paths are inside vllm/, and the same in the three versions unless a comment says otherwise.
# v1/engine/core.py EngineCore.__init__; the text after it is config/vllm.py VllmConfig.__str__
_ENGINE = _rule("core.py", r"Initializing a V1 LLM engine \(v(?P<version>[^)]+)\) with config: ")
_CONFIG = re.compile(
    r", dtype=torch\.(?P<dtype>\w+), max_seq_len=.*"
    r", kv_cache_dtype=(?P<kv>\w+), device_config=(?P<device>\w+), .*"
    r"'cudagraph_mode': <CUDAGraphMode\.(?P<graphs>\w+): "
)
# platforms/cuda.py get_attn_backend_cls: the first form when --attention-backend names one (an enum member;
# a line for each kind of layer), the second when vLLM chooses (once for equal text). platforms/cpu.py from
# 0.32.0 on: for MLA only.
_BACKEND = _rule(
    "cuda.py cpu.py",
    r"Using (?:AttentionBackendEnum\.)?(\w+) (?:backend\.$|attention backend out of potential backends: )",
)
# v1/attention/backends/flash_attn.py FlashAttentionImpl.__init__
_FLASH_VERSION = _rule("flash_attn.py", r"Using FlashAttention version (\d+)")
# v1/attention/backends/flashinfer.py FlashInferMetadataBuilder.__init__
_FLASHINFER = _rule("flashinfer.py", r"FlashInfer resolved query dtypes: (.+?)\s*$")
# log_non_default_args in entrypoints/serve/utils/api_utils.py (0.26.0, 0.32.0), common/startup.py (0.33.0)
_ARGUMENTS = _rule("api_utils.py startup.py", r"non-default args: (\{.*\})")
_SKIP_LAYERS = re.compile(r"'kv_cache_dtype_skip_layers': (\[[^\]]*\])")
# v1/core/kv_cache_utils.py: 0.26.0 prints two lines, and "GPU" on a CPU too; 0.32.0 and 0.33.0 one line
_CAPACITY = _rule("kv_cache_utils.py", r"\b[A-Z]+ KV cache size: ([\d,]+) tokens")
_MAX_MODEL_LEN = _rule("kv_cache_utils.py", r"Maximum concurrency for ([\d,]+) tokens per request: ")
# v1/core/kv_cache_utils.py resolve_kv_cache_block_sizes, from 0.32.0 on, with more than one KV cache group
_BLOCK_SIZES = _rule("kv_cache_utils.py", r"kv cache group sizes (\([\d, ]+\))")
# v1/worker/gpu_model_runner.py, v1/worker/gpu/model_runner.py
_RUNNERS = "gpu_model_runner.py model_runner.py"
_CAPTURED = _rule(_RUNNERS, r"Graph capturing finished in ")
_NOT_CAPTURED = _rule(_RUNNERS, r"Skipping .*CUDA graph capture\.")
# config/compilation.py resolve_cudagraph_mode_and_sizes, in the worker; the second form from 0.32.0 on
_GRAPH_CHANGE = _rule("compilation.py", r"; setting cudagraph_mode=(\w+)|CUDA graphs\. Overriding to (\w+)\.")
# model_executor/layers/fused_moe/oracle/mxfp4.py and unquantized.py
_MOE = _rule("mxfp4.py unquantized.py", r"Using '?(\w+)'? (?:Mxfp4 MoE backend|Unquantized MoE backend out)")
# our plugin, cpu_cache.py or cpu_widen.py
_CPU_PLUGIN = "cpu_cache.py cpu_widen.py"
_CPU_CACHE_WRITER = _rule(_CPU_PLUGIN, r"fp8-sinks: CPU KV cache writer rounds to (\S+)")
_CPU_ATTENTION = _rule(_CPU_PLUGIN, r"fp8-sinks: CPU attention reads the \S+ cache: (native|widened)")
_CPU_SCALES = _rule("cpu_storage.py", r"fp8-sinks: CPU KV scales (\w+)")


def _records(log_text: str) -> Records:
    """The log records as (base name of the source that logged it, message); other output is left out."""
    matches = (_RECORD.search(line) for line in ANSI.sub("", log_text).splitlines())
    return [(match["file"], match["message"]) for match in matches if match]


def _matches(records: Records, rule: Rule) -> list[re.Match[str]]:
    files, pattern = rule
    return [match for file, text in records if file in files.split() and (match := pattern.search(text))]


def _values(records: Records, rule: Rule) -> list[str]:
    """The first group of every match, each value once, in order."""
    return list(dict.fromkeys(match[1] for match in _matches(records, rule)))


def _single(records: Records, rule: Rule, setting: str) -> str | None:
    """The value that a rule matches, None without a match. Raises ValueError for different values."""
    values = _values(records, rule)
    if len(values) > 1:
        raise ValueError(f"the log states different values for {setting}: {' and '.join(values)}")
    return values[0] if values else None


def _engine_config(records: Records, version: str) -> re.Match[str]:
    """The match of _CONFIG in the engine's config line. Raises ValueError for another version, or several starts."""
    engines = _matches(records, _ENGINE)
    if len(engines) != 1:
        raise ValueError(f"expected one engine config line (one start of a server), got {len(engines)}")
    if engines[0]["version"].partition("+")[0] != version:
        raise ValueError(f"expected the log of vLLM {version}, got one of vLLM {engines[0]['version']}")
    config = _CONFIG.search(engines[0].string)
    if not config:
        raise ValueError("the engine config line lacks dtype, kv_cache_dtype, device or cudagraph_mode")
    return config


def _attention_backends(records: Records, device: str) -> list[str]:
    """The backends chosen, each once; empty if the log has none."""
    backends = _values(records, _BACKEND)
    if not backends and device == "cpu":
        # platforms/cpu.py get_attn_backend_cls returns CPU_ATTN for every layer that is not MLA, whatever is
        # requested, and does not log it. 0.26.0 refuses MLA, the others log their choice for it.
        return ["CPU_ATTN"]
    return backends


def _cuda_graphs(records: Records, configured: str) -> str | None:
    """The mode captured, "none" without graphs; None if the log lacks the end of a capture."""
    changes = [match[1] or match[2] for match in _matches(records, _GRAPH_CHANGE)]
    mode = changes[-1] if changes else configured
    if mode == "NONE" or _matches(records, _NOT_CAPTURED):
        return "none"
    return mode if _matches(records, _CAPTURED) else None


def read(log_text: str, vllm_version: str, record: DecoderRecord | None = None) -> Resolved:
    """Parse the log of one start of a server, at least up to when it was ready.

    vllm_version: for example "0.33.0"; a local part such as "+cu130" is ignored. record: our plugin's, which alone
    states the decoder.
    Raises ValueError that names every missing setting, or if the log contradicts itself or `vllm_version`. No setting
    has a default.
    """
    version = vllm_version.partition("+")[0]
    if version not in SUPPORTED_VERSIONS:
        raise ValueError(f"no rules for the log of vLLM {version}, only for {', '.join(SUPPORTED_VERSIONS)}")
    records = _records(log_text)
    config = _engine_config(records, version)
    backends = _attention_backends(records, config["device"])
    flash_version = _single(records, _FLASH_VERSION, "the FlashAttention version")
    flashinfer = [text.replace("torch.", "") for text in _values(records, _FLASHINFER)]
    arguments = _single(records, _ARGUMENTS, "the server's arguments")
    capacity = _single(records, _CAPACITY, "the KV cache capacity")
    max_model_len = _single(records, _MAX_MODEL_LEN, "the maximum model length")
    graphs = _cuda_graphs(records, config["graphs"])
    missing = {
        "the attention backend": not backends,
        "the FlashAttention version": "FLASH_ATTN" in backends and flash_version is None,
        "FlashInfer's query dtypes": "FLASHINFER" in backends and not flashinfer,
        "the server's arguments (non-default args)": arguments is None,
        "the KV cache capacity (KV cache size)": capacity is None,
        "the maximum model length (Maximum concurrency)": max_model_len is None,
        f"the end of the CUDA graph capture (mode {config['graphs']})": graphs is None,
    }
    if any(missing.values()):
        settings = "; ".join(setting for setting, is_missing in missing.items() if is_missing)
        raise ValueError(f"not found in the log of vLLM {version}: {settings}")
    skip = _SKIP_LAYERS.search(arguments)
    blocks = _single(records, _BLOCK_SIZES, "the KV block sizes")
    writer = _single(records, _CPU_CACHE_WRITER, "the KV format")
    scales = _single(records, _CPU_SCALES, "the KV scales")
    return Resolved(
        vllm_version=version,
        device=config["device"],
        model_dtype=config["dtype"],
        max_model_len=int(max_model_len.replace(",", "")),
        attention_backends=backends,
        flash_attention_version=None if flash_version is None else int(flash_version),
        flashinfer=flashinfer,
        kv_cache_dtype=config["kv"],
        kv_skip_layers=[str(layer) for layer in ast.literal_eval(skip[1])] if skip else [],
        kv_capacity_tokens=int(capacity.replace(",", "")),
        kv_block_sizes=None if blocks is None else list(ast.literal_eval(blocks)),
        moe_backend=_single(records, _MOE, "the MoE backend"),
        cuda_graphs=graphs,
        cpu_cache_writer=writer is not None,
        cpu_attention=_single(records, _CPU_ATTENTION, "the CPU attention"),
        **(record.model_dump(exclude={"version"}) if record else {"kv_format": writer, "kv_scales": scales}),
    )


def canonical_kv_dtype(name: str, model_dtype: str) -> str:
    """The dtype that `--kv-cache-dtype name` stores: "auto" is the model's dtype, "fp8" is fp8_e4m3."""
    return {"auto": model_dtype, "fp8": "fp8_e4m3"}.get(name, name)


class Mismatch(NamedTuple):
    """A setting that is not as requested."""

    setting: str
    expected: str
    actual: str

    def __str__(self) -> str:
        return f"{self.setting}: expected {self.expected}, got {self.actual}"


def mismatches(
    resolved: Resolved,
    expected_backends: list[str],
    kv_cache_dtype: str,
    kv_skip_layers: list[str],
    decoder: Decoder = "stock",
    kv_scales: str | None = None,
    kv_format: str | None = None,
) -> list[Mismatch]:
    """Compare the server's settings with the request; an empty list means they agree.

    Every expected backend must be in use, and no other; a cache of codes on a CPU must be written by our rounding
    writer, since vLLM's own truncates, and the kernel that reads it must be logged. kv_scales: the sha256 of the scale
    file. kv_format: None where our plugin records none.
    Raises ValueError if `expected_backends` is empty.
    """
    if not expected_backends:
        raise ValueError("expected_backends is empty: name the attention backends that the server is to use")
    pairs = []
    if set(resolved.attention_backends) != set(expected_backends):
        backends = ", ".join(expected_backends), ", ".join(resolved.attention_backends)
        pairs.append(Mismatch("attention backend", *backends))
    if resolved.decoder != decoder:
        pairs.append(Mismatch("decoder", decoder, resolved.decoder))
    if resolved.kv_scales != kv_scales:
        pairs.append(Mismatch("KV scales", kv_scales or "none", resolved.kv_scales or "none"))
    if kv_format not in (None, resolved.kv_format):
        pairs.append(Mismatch("KV format", kv_format, resolved.kv_format or "none recorded"))
    expected = canonical_kv_dtype(kv_cache_dtype, resolved.model_dtype)
    actual = canonical_kv_dtype(resolved.kv_cache_dtype, resolved.model_dtype)
    if expected != actual:
        dtypes = f"{expected} ({kv_cache_dtype})", f"{actual} ({resolved.kv_cache_dtype})"
        pairs.append(Mismatch("KV cache dtype", *dtypes))
    if resolved.kv_skip_layers != kv_skip_layers:
        layers = (", ".join(names) or "none" for names in (kv_skip_layers, resolved.kv_skip_layers))
        pairs.append(Mismatch("layers with an unquantised KV cache", *layers))
    codes_on_cpu = resolved.device == "cpu" and actual.startswith(("fp8", "int8"))
    if codes_on_cpu and not resolved.cpu_cache_writer:
        pairs.append(Mismatch("CPU cache writer", "fp8-sinks, which rounds", "vLLM, which truncates"))
    if codes_on_cpu and resolved.cpu_attention is None:
        pairs.append(Mismatch("CPU attention over the KV cache", "native or widened", "none logged"))
    return pairs
