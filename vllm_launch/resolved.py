"""What a running vLLM server really does, read back from its own log.

A profile asks for a backend and a KV cache dtype; vLLM may pick another backend without failing. `read`
turns the log of a started server (default INFO level) into a `Resolved`, and `mismatches` compares it with what
was asked.

The rules are written from the sources of vLLM 0.26.0, 0.32.0 (its CPU build) and 0.33.0.
"""

from __future__ import annotations

import ast
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict

SUPPORTED_VERSIONS = ("0.26.0", "0.32.0", "0.33.0")


class Resolved(BaseModel):
    """What one server really uses. None: this version or platform does not state it.

    device: "cuda" or "cpu". model_dtype: the dtype of activations, for example "bfloat16".
    max_model_len, kv_capacity_tokens: tokens. max_concurrency: requests of max_model_len that fit at once.
    attention_backends: names of vLLM's AttentionBackendEnum, each once, in the order they were chosen.
    flash_attention_version: 2, 3 or 4. Whether FLASH_ATTN quantises the query is not logged.
    flashinfer: one statement for each kind of KV cache group: query dtypes, decode kernel, cache dtype.
    kv_cache_dtype: as vLLM states it; "auto" means model_dtype, "fp8" means fp8_e4m3.
    kv_skip_layers: what keeps model_dtype: layer numbers, or "sliding_window".
    kv_block_sizes: tokens a block, one number for each KV cache group.
    kv_cache_gib, weights_gib: GiB of device memory (on a CPU: of RAM).
    moe_backend: the kernels of the experts, for example "MARLIN".
    cuda_graphs: the mode captured (FULL_AND_PIECEWISE, PIECEWISE, FULL, FULL_DECODE_ONLY) or "none".
    cpu_cache_writer: whether our rounding CPU cache writer is active.
    cpu_attention: what reads an FP8 cache on a CPU: vLLM's own FP8 kernel, or its kernel for model_dtype, for which our
    plugin widens the cache.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

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
    max_concurrency: float
    kv_block_sizes: list[int] | None
    kv_cache_gib: float | None
    weights_gib: float | None
    moe_backend: str | None
    cuda_graphs: str
    cpu_cache_writer: bool
    cpu_attention: Literal["native", "widened"] | None = None


Records = list[tuple[str, str]]
Rule = tuple[str, re.Pattern[str]]


def _rule(files: str, pattern: str) -> Rule:
    """A message to look for. files: base names of the sources that print it, separated by spaces."""
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
_CONCURRENCY = _rule("kv_cache_utils.py", r"Maximum concurrency for (.+) tokens per request: ([\d.]+)x")
# v1/core/kv_cache_utils.py resolve_kv_cache_block_sizes, from 0.32.0 on, with more than one KV cache group
_BLOCK_SIZES = _rule("kv_cache_utils.py", r"kv cache group sizes (\([\d, ]+\))")
# v1/worker/gpu_worker.py and v1/worker/cpu_worker.py determine_available_memory
_KV_MEMORY = _rule("gpu_worker.py", r"Available KV cache memory: ([\d.]+) GiB")
_KV_MEMORY_CPU = _rule("cpu_worker.py", r"(?:Explicitly|Auto) set \(([\d.]+)/[\d.]+\) GiB for KV cache")
# v1/worker/gpu_model_runner.py, v1/worker/gpu/model_runner.py (0.26.0 without "memory"); not on a CPU
_RUNNERS = "gpu_model_runner.py model_runner.py"
_WEIGHTS = _rule(_RUNNERS, r"Model loading took ([\d.]+) GiB (?:memory )?and ")
_CAPTURED = _rule(_RUNNERS, r"Graph capturing finished in ")
_NOT_CAPTURED = _rule(_RUNNERS, r"Skipping .*CUDA graph capture\.")
# config/compilation.py resolve_cudagraph_mode_and_sizes, in the worker; the second form from 0.32.0 on
_GRAPH_CHANGE = _rule("compilation.py", r"; setting cudagraph_mode=(\w+)|CUDA graphs\. Overriding to (\w+)\.")
# model_executor/layers/fused_moe/oracle/mxfp4.py and unquantized.py
_MOE = _rule("mxfp4.py unquantized.py", r"Using '?(\w+)'? (?:Mxfp4 MoE backend|Unquantized MoE backend out)")
# our plugin, cpu_cache.py or cpu_widen.py
_CPU_PLUGIN = "cpu_cache.py cpu_widen.py"
_CPU_CACHE_WRITER = _rule(_CPU_PLUGIN, r"fp8-sinks: CPU KV cache writer rounds to")
_CPU_ATTENTION = _rule(_CPU_PLUGIN, r"fp8-sinks: CPU attention reads the FP8 cache: (native|widened)")


def _records(log_text: str) -> Records:
    """The log records as (base name of the file that printed it, message); other output is left out."""
    found = (_RECORD.search(line) for line in ANSI.sub("", log_text).splitlines())
    return [(match["file"], match["message"]) for match in found if match]


def _matches(records: Records, rule: Rule) -> list[re.Match[str]]:
    files, pattern = rule
    return [match for file, text in records if file in files.split() and (match := pattern.search(text))]


def _values(records: Records, rule: Rule) -> list[str]:
    """The first group of every match, each value once, in order."""
    return list(dict.fromkeys(match[1] for match in _matches(records, rule)))


def _single(records: Records, rule: Rule, what: str) -> str | None:
    """The value a rule finds, None if it finds none. Raises ValueError if the log states different ones."""
    values = _values(records, rule)
    if len(values) > 1:
        raise ValueError(f"the log states different values for {what}: {' and '.join(values)}")
    return values[0] if values else None


def _gib(records: Records, rule: Rule, what: str) -> float | None:
    text = _single(records, rule, what)
    return None if text is None else float(text)


def _attention_backends(records: Records, device: str) -> list[str]:
    """The backends chosen, each once; empty if the log does not tell."""
    found = _values(records, _BACKEND)
    if not found and device == "cpu":
        # platforms/cpu.py get_attn_backend_cls returns CPU_ATTN for every layer that is not MLA, whatever was
        # asked, and does not log it. 0.26.0 refuses MLA, the others log their choice for it.
        return ["CPU_ATTN"]
    return found


def _cuda_graphs(records: Records, configured: str) -> str | None:
    """The mode captured, "none" without graphs; None if a capture was due and the log does not end it."""
    changes = [match[1] or match[2] for match in _matches(records, _GRAPH_CHANGE)]
    mode = changes[-1] if changes else configured
    if mode == "NONE" or _matches(records, _NOT_CAPTURED):
        return "none"
    return mode if _matches(records, _CAPTURED) else None


def read(log_text: str, vllm_version: str) -> Resolved:
    """Parse the log of one start of a server, up to when it was ready at least.

    vllm_version: for example "0.33.0"; a local part such as "+cu130" is ignored.
    Raises ValueError naming everything it could not find, or where the log contradicts itself or
    `vllm_version`. Nothing is filled in by default.
    """
    version = vllm_version.partition("+")[0]
    if version not in SUPPORTED_VERSIONS:
        raise ValueError(f"no rules for the log of vLLM {version}, only for {', '.join(SUPPORTED_VERSIONS)}")
    records = _records(log_text)
    engines = _matches(records, _ENGINE)
    if len(engines) != 1:
        raise ValueError(f"expected one engine config line (one start of a server), got {len(engines)}")
    if engines[0]["version"].partition("+")[0] != version:
        raise ValueError(f"expected the log of vLLM {version}, got one of vLLM {engines[0]['version']}")
    config = _CONFIG.search(engines[0].string)
    if not config:
        raise ValueError("the engine config line lacks dtype, kv_cache_dtype, device or cudagraph_mode")

    backends = _attention_backends(records, config["device"])
    flash_version = _single(records, _FLASH_VERSION, "the FlashAttention version")
    flashinfer = [text.replace("torch.", "") for text in _values(records, _FLASHINFER)]
    arguments = _single(records, _ARGUMENTS, "the server's arguments")
    capacity = _single(records, _CAPACITY, "the KV cache capacity")
    concurrency = _matches(records, _CONCURRENCY)
    graphs = _cuda_graphs(records, config["graphs"])
    absent = {
        "the attention backend": not backends,
        "the FlashAttention version": "FLASH_ATTN" in backends and flash_version is None,
        "FlashInfer's query dtypes": "FLASHINFER" in backends and not flashinfer,
        "the server's arguments (non-default args)": arguments is None,
        "the KV cache capacity (KV cache size)": capacity is None,
        "the maximum concurrency": not concurrency,
        f"the end of the CUDA graph capture (mode {config['graphs']})": graphs is None,
    }
    if any(absent.values()):
        missing = "; ".join(what for what, is_absent in absent.items() if is_absent)
        raise ValueError(f"not found in the log of vLLM {version}: {missing}")

    skip = _SKIP_LAYERS.search(arguments)
    blocks = _single(records, _BLOCK_SIZES, "the KV block sizes")
    kv_memory = _KV_MEMORY_CPU if config["device"] == "cpu" else _KV_MEMORY
    return Resolved(
        vllm_version=version,
        device=config["device"],
        model_dtype=config["dtype"],
        max_model_len=int(concurrency[0][1].replace(",", "")),
        attention_backends=backends,
        flash_attention_version=None if flash_version is None else int(flash_version),
        flashinfer=flashinfer,
        kv_cache_dtype=config["kv"],
        kv_skip_layers=[str(layer) for layer in ast.literal_eval(skip[1])] if skip else [],
        kv_capacity_tokens=int(capacity.replace(",", "")),
        max_concurrency=float(concurrency[0][2]),
        kv_block_sizes=None if blocks is None else list(ast.literal_eval(blocks)),
        kv_cache_gib=_gib(records, kv_memory, "the KV cache memory"),
        weights_gib=_gib(records, _WEIGHTS, "the size of the weights"),
        moe_backend=_single(records, _MOE, "the MoE backend"),
        cuda_graphs=graphs,
        cpu_cache_writer=bool(_matches(records, _CPU_CACHE_WRITER)),
        cpu_attention=_single(records, _CPU_ATTENTION, "the CPU attention"),
    )


def canonical_kv_dtype(name: str, model_dtype: str) -> str:
    """What is stored for `--kv-cache-dtype name`: "auto" is the model's dtype, "fp8" is fp8_e4m3."""
    return {"auto": model_dtype, "fp8": "fp8_e4m3"}.get(name, name)


def mismatches(
    resolved: Resolved, expected_backends: list[str], kv_cache_dtype: str, kv_skip_layers: list[str]
) -> list[str]:
    """Sentences (expected, got) on where the server differs from what was asked; none if it does not.

    Every expected backend must be in use, and no other; an FP8 cache on a CPU must be written by our rounding
    writer, since vLLM's own truncates, and it must be known what reads it. Raises ValueError if `expected_backends` is
    empty.
    """
    if not expected_backends:
        raise ValueError("expected_backends is empty: name the attention backends that the server is to use")
    sentences = []
    if set(resolved.attention_backends) != set(expected_backends):
        expected, got = ", ".join(expected_backends), ", ".join(resolved.attention_backends)
        sentences.append(f"attention backend: expected {expected}, got {got}")
    expected = canonical_kv_dtype(kv_cache_dtype, resolved.model_dtype)
    got = canonical_kv_dtype(resolved.kv_cache_dtype, resolved.model_dtype)
    if expected != got:
        stated = resolved.kv_cache_dtype
        sentences.append(f"KV cache dtype: expected {expected} ({kv_cache_dtype}), got {got} ({stated})")
    if resolved.kv_skip_layers != kv_skip_layers:
        sentences.append(
            f"layers with an unquantised KV cache: expected {kv_skip_layers or 'none'}, "
            f"got {resolved.kv_skip_layers or 'none'}"
        )
    on_cpu = resolved.device == "cpu" and got.startswith("fp8")
    if on_cpu and not resolved.cpu_cache_writer:
        sentences.append("CPU cache writer: expected the rounding one of fp8-sinks, got vLLM's, which truncates")
    if on_cpu and resolved.cpu_attention is None:
        sentences.append("CPU attention over the FP8 cache: expected native or widened, got none that says so")
    return sentences
