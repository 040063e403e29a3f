"""Engines of the tiny model, with our backend and without, each in a process of its own, on a GPU or a CPU.

Shared by `tiny_model`, `soak`, `long_prompts` and `forced_decode`. On a CPU the backend is `cpu_backend`: all of it but
the kernels.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from bench.engine.engines import reason
from bench.engine.environment import OF_RANKS
from bench.record.files import write_text
from vllm_launch import profile
from vllm_launch.decoder.contract import INT8, KV_FORMAT, KV_SCALES

MODEL = Path(__file__).parents[3] / "models" / "tiny_gpt_oss"
# vLLM looks for a free port from VLLM_PORT on, and opens it much later: engines that start at once get ranges of their
# own, below the ports that the system gives to clients.
FIRST_PORT, PORTS = 21000, 100
ENVIRONMENT = {  # read when vLLM is imported
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
OF_DEVICE = {
    "cpu": {"VLLM_PLUGINS": "none", "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"},
    "gpu": {"FP8_SINKS_PLUGIN": "1"},
}
NAN_SHARE = 0.15  # of the GPU's free memory, for each engine
ROW_BYTES, WINDOW = 512, 128  # of K and V of a token in a layer, in BF16; tokens of a window layer
NAN_BYTE = 0xFF  # NaN as E4M3, and as BF16 if repeated
ARGUMENTS = {
    "model": str(MODEL),
    "dtype": "bfloat16",
    "max_model_len": 131072,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 512,
    "enable_prefix_caching": True,
}
GRAPH_SIZES = {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32]}
UNCOMPILED = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
UNFUSED = {"pass_config": {"fuse_allreduce_rms": False}}  # with several ranks, as OF_RANKS
RANK_CHECKS = "kernels_tests.vllm_launch.plugin.ranks.RankChecks"
GPU_RANK = "kernels_tests.vllm_launch.plugin.gpu_rank.GpuRank"
CPU_RANK = "kernels_tests.vllm_launch.plugin.cpu_rank.CpuRank"
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
FP8, TOKEN_INT8 = {"kv_cache_dtype": "fp8"}, {"kv_cache_dtype": INT8}
SCALES = profile.FOLDER / "tiny_gpt_oss.int8.safetensors"
STATIC = {KV_FORMAT: "int8", KV_SCALES: str(SCALES)}


class Engine(NamedTuple):
    """arguments: of vLLM. kv_format: as the record names it. is_ours: with our backend.

    small_scratch: its prefill has memory for two steps only. fa2: it prefills as on other GPUs than Hopper. ranks: GPUs
    that share its heads, or processes on a CPU.
    """

    arguments: dict
    kv_format: str = "bf16"
    is_ours: bool = True
    small_scratch: bool = False
    fa2: bool = False
    ranks: int = 1


SKIP_SLIDING = {"kv_cache_dtype_skip_layers": ["sliding_window"]}
EAGER = {"enforce_eager": True}
ENGINES = {
    "stock-bf16": Engine({}, is_ours=False),
    "stock-fp8": Engine(FP8, "e4m3", is_ours=False),
    "bf16": Engine({}),
    "fp8": Engine(FP8, "e4m3"),
    "bf16-eager": Engine(EAGER),
    "fp8-eager": Engine(FP8 | EAGER, "e4m3"),
    "fp8-skip-sliding": Engine(FP8 | SKIP_SLIDING, "e4m3"),
    "fp8-ngram": Engine(FP8 | {"speculative_config": NGRAM}, "e4m3"),
    "fp8-small-scratch": Engine(FP8, "e4m3", small_scratch=True),  # longer contexts are merged by LSE
    "int8": Engine(TOKEN_INT8, "int8"),
    "int8-eager": Engine(TOKEN_INT8 | EAGER, "int8"),
    "int8-skip-sliding": Engine(TOKEN_INT8 | SKIP_SLIDING, "int8"),
    "int8-static": Engine(FP8, "int8-static"),
    "bf16-fa2": Engine({}, fa2=True),
    "fp8-fa2": Engine(FP8, "e4m3", fa2=True),
    "stock-bf16-tp2": Engine({}, is_ours=False, ranks=2),
    "bf16-tp2": Engine({}, ranks=2),
    "fp8-tp2": Engine(FP8, "e4m3", ranks=2),
    "int8-tp2": Engine(TOKEN_INT8, "int8", ranks=2),
}
SINGLE_RANK = [name for name, engine in ENGINES.items() if engine.ranks == 1]
Verdict = tuple[bool, str]
LOG = "engines.log"


def device() -> Literal["cpu", "gpu"]:
    return "gpu" if torch.cuda.is_available() else "cpu"


def start(name: str, *, compiled: bool = False, **arguments):
    """Start the engine in this process, all memory that it gets filled with NaN; returns vLLM's LLM.

    With several ranks their workers are processes of their own, which fill their memory themselves.
    """
    engine, on_gpu = ENGINES[name], device() == "gpu"
    if on_gpu and engine.ranks == 1:
        fill_memory_with_nan()
    from vllm import LLM

    from vllm_launch.plugin.attention import buffers

    of_device = _gpu_arguments(engine, compiled) if on_gpu else _cpu_arguments(engine)
    of_ranks = {"tensor_parallel_size": engine.ranks, "worker_extension_cls": RANK_CHECKS}
    settings = ARGUMENTS | of_device | of_ranks | engine.arguments | arguments
    if engine.small_scratch:
        buffers.SCRATCH_BYTES = ROW_BYTES * 2 * (settings["max_num_batched_tokens"] + WINDOW)
    llm = LLM(**settings)
    if engine.is_ours:
        llm.collective_rpc("fill_cache_with_nan")
    return llm


def _gpu_arguments(engine: Engine, compiled: bool) -> dict:
    """Arguments on a GPU; registers our backend."""
    from vllm_launch import plugin

    if engine.is_ours:
        plugin.register()
    if engine.fa2:
        from vllm_launch.plugin.attention import flash_attention

        flash_attention.choose = lambda device: flash_attention.fa2
    return {
        "gpu_memory_utilization": 0.1,
        "kv_cache_memory_bytes": 4 * 2**30,
        "compilation_config": GRAPH_SIZES | ({} if compiled else UNCOMPILED) | (UNFUSED if engine.ranks > 1 else {}),
        **({"attention_backend": "CUSTOM"} if engine.is_ours else {}),
        **({"worker_cls": GPU_RANK} if engine.ranks > 1 else {}),
    }


def _cpu_arguments(engine: Engine) -> dict:
    """Arguments on a CPU; registers its backend."""
    register_cpu_backend(engine.is_ours)
    return {"enforce_eager": True} | ({"worker_cls": CPU_RANK} if engine.is_ours and engine.ranks > 1 else {})


def register_cpu_backend(is_ours: bool) -> None:
    """Register `cpu_backend` in this process, or without our backend a stock one that rounds FP8 right."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from vllm_launch import plugin

    ours = "kernels_tests.vllm_launch.plugin.cpu_backend.SinkBackend"
    register_backend(AttentionBackendEnum.CPU_ATTN, ours if is_ours else plugin.CPU_BACKENDS[plugin.cpu_attention()])


def fill_memory_with_nan() -> None:
    """Fill a share of the current GPU's free memory with NaN; torch's allocator keeps it for this process."""
    filled = torch.full((int(torch.cuda.mem_get_info()[0] * NAN_SHARE) // 4,), torch.nan, device="cuda")
    del filled


def core(llm):
    """vLLM's EngineCore, which runs in this process."""
    return llm.llm_engine.engine_core.engine_core


def text_of(llm) -> list[int]:
    """Tokens of the held-out text."""
    tokenizer = llm.get_tokenizer()
    with (MODEL / "heldout.jsonl").open() as lines:
        return [token for line in lines for token in tokenizer.encode(json.loads(line)["text"])]


def excerpt(text: Sequence[int], first: int, length: int) -> list[int]:
    """Cut `length` tokens out of a text, from `first` on, as if it were repeated for ever."""
    return [text[(first + i) % len(text)] for i in range(length)]


def run(
    parser: argparse.ArgumentParser,
    serve: Callable[[argparse.Namespace], dict],
    judge: Callable[[argparse.Namespace, dict[str, dict]], list[Verdict]],
    *,
    always: Sequence[str] = (),
    comparisons: Sequence = (),
) -> int:
    """Serve each engine in a process of its own, print the verdicts on their results; returns the exit code.

    serve: returns the result of the engine `arguments.serve`, as JSON. always: engines that run with any others.
    comparisons: with candidate and reference; the references of the named engines run too.

    Writes results.json and engines.log as engines end, then verdicts.txt. A running engine has files of its own.
    """
    arguments = _parse(parser)
    if arguments.serve:
        save(arguments, serve(arguments))
        sys.stdout.flush()
        os._exit(0)  # without the engine's teardown: all is written, and vLLM 0.33's fails with torch 2.11
    arguments.out.mkdir(parents=True, exist_ok=True)
    references = [entry.reference for entry in comparisons if entry.candidate in arguments.names]
    names = list(dict.fromkeys([*always, *references, *arguments.names]))
    results, verdicts, deadline = {}, [], time.time() + arguments.seconds
    (arguments.out / LOG).unlink(missing_ok=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = {pool.submit(_run_process, name, arguments.out, deadline): name for name in names}
        for process in as_completed(runs):
            name, failure = runs[process], process.result()
            print(f"{name}: ended with {deadline - time.time():.0f} s left", flush=True)
            verdicts += [(False, f"{name}: {failure}")] if failure else []
            results |= collect(arguments.out, name)
            write_text(json.dumps(results), arguments.out / "results.json")
    results = {name: results[name] for name in names if name in results}
    verdicts += [record_verdict(name, result) for name, result in results.items() if ENGINES[name].is_ours]
    verdicts += judge(arguments, results)
    lines = [f"{'PASS' if passes else 'FAIL'} {line}" for passes, line in verdicts]
    print(*lines, sep="\n")
    write_text("\n".join(lines) + "\n", arguments.out / "verdicts.txt")
    return 0 if all(passes for passes, _ in verdicts) else 1


def save(arguments: argparse.Namespace, result: dict) -> None:
    """Write the result of the engine that this process serves."""
    write_text(json.dumps(result), arguments.out / f"{arguments.serve}.json")


def _parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.add_argument("names", nargs="*", default=parser.get_default("names"), metavar="ENGINE")
    parser.add_argument("--serve", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--compiled", action="store_true", help="vLLM's default compilation and graphs, not none")
    parser.add_argument("--jobs", type=int, default=3, help="engines at a time")
    parser.add_argument("--seconds", type=float, default=570, help="after which engines that still run are killed")
    parser.add_argument("--out", type=Path, default=None, help="folder for engines.log, results.json, verdicts.txt")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(ENGINES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected {', '.join(ENGINES)}")
    arguments.out = arguments.out or Path(tempfile.mkdtemp(prefix="fp8-sinks-"))
    return arguments


def _run_process(name: str, out: Path, deadline: float) -> str | None:
    """Run this program with the same arguments to serve an engine; returns why it failed."""
    environment = ENVIRONMENT | OF_DEVICE[device()]
    environment |= {
        "FP8_SINKS_RECORD": str(out.resolve() / f"{name}.record.json"),
        "VLLM_PORT": str(FIRST_PORT + PORTS * list(ENGINES).index(name)),
    }
    environment |= STATIC if ENGINES[name].kv_format == "int8-static" else {}
    environment |= OF_RANKS[device()] if ENGINES[name].ranks > 1 else {}
    module, log, seconds = sys.modules["__main__"].__spec__.name, out / f"{name}.log", deadline - time.time()
    command = [sys.executable, "-m", module, *sys.argv[1:], "--out", str(out), "--serve", name]
    for path in (out / f"{name}.json", out / f"{name}.record.json"):
        path.unlink(missing_ok=True)
    with log.open("w") as stream:
        try:
            code = subprocess.run(
                [*command, "--seconds", str(seconds)],
                env=os.environ | environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=seconds,
            ).returncode
        except subprocess.TimeoutExpired:
            return f"not ended after {seconds:.0f} s"
    return reason(log, 0, code) if code else None


def collect(out: Path, name: str) -> dict[str, dict]:
    """Remove the files of an engine that has ended; returns its result with its record, and keeps its log in LOG."""
    log, result, record = (out / f"{name}{suffix}" for suffix in (".log", ".json", ".record.json"))
    with (out / LOG).open("a") as stream:
        stream.write(f"==== {name}\n{log.read_text(errors='replace')}")
    collected = {}
    if result.exists():
        collected[name] = json.loads(result.read_bytes())
        collected[name]["record"] = json.loads(record.read_bytes()) if record.exists() else {}
    for path in (log, result, record):
        path.unlink(missing_ok=True)
    return collected


def record_verdict(name: str, result: dict) -> Verdict:
    """Whether an engine with our backend has recorded decoder lowp and its KV format."""
    resolved = result["record"].get("decoder"), result["record"].get("kv_format")
    return resolved == ("lowp", ENGINES[name].kv_format), f"{name}: record {result['record']}"
