"""`python -m bench.engine.inside.process TASK`: start an engine in this process and measure its cells, a file each.

An exception ends the process: the cell without a file is the one that failed.
"""

import json
import os
import sys
import time
from pathlib import Path
from statistics import median

import psutil
from vllm import LLM
from vllm.v1.core.kv_cache_utils import get_kv_cache_capacity

from bench.engine.cells import Cell
from bench.engine.inside import steps
from bench.engine.inside.connector import KV_TRANSFER
from bench.engine.result import EngineRow, StepProfile
from bench.engine.task import PROFILE, READY, Task, cell_path, cells_of, row
from bench.record import files
from vllm_launch.decoder import record
from vllm_launch.decoder.contract import RECORD


def main(task: Task) -> LLM:
    """Measure the cells; returns the engine, which is torn down where nothing refers to it."""
    llm = LLM(**task.arguments, kv_transfer_config=KV_TRANSFER)
    start_s = time.time() - psutil.Process().create_time()
    fields = resolved(llm, task) | {"start_s": round(start_s, 2)}
    prepare(llm, task)
    folder = Path(task.folder)
    files.write_text(json.dumps(fields), folder / READY)
    for cell in cells_of(task):
        if time.time() > task.until:
            break
        if task.profile:
            files.write(profile(llm, task, cell), folder / PROFILE)
        else:
            files.write(measure(llm, task, cell, fields), cell_path(folder, cell))
    return llm


def resolved(llm, task: Task) -> dict:
    """Fields of EngineRow that the start decided. Raises RuntimeError for others than the variant asks for."""
    workers = llm.collective_rpc("describe_engine")
    worker, config, variant = workers[0], llm.llm_engine.vllm_config, task.variant
    if len(workers) != task.labels["tensor_parallel"]:
        raise RuntimeError(f"workers: expected {task.labels['tensor_parallel']}, got {len(workers)}")
    if any(description != worker for description in workers):
        raise RuntimeError(f"workers: expected the same of all, got {workers}")
    if variant.backend and worker["backends"] != [variant.backend]:
        raise RuntimeError(f"attention backend: expected {variant.backend}, got {', '.join(worker['backends'])}")
    if (1 in worker["cache_bytes"]) is (variant.kv_format == "bf16"):
        raise RuntimeError(f"KV cache: expected {variant.kv_format}, got values of {worker['cache_bytes']} bytes")
    capacity, _ = get_kv_cache_capacity(config, kv_cache(llm))
    runners = {"vllm.v1.worker.gpu_model_runner": "v1", "vllm.v1.worker.gpu.model_runner": "v2"}
    return {
        "runner": runners.get(worker["runner"], worker["runner"].rpartition(".")[2]),
        "backend": ", ".join(worker["backends"]),
        "decoder": decoder(task),
        "cuda_graphs": config.compilation_config.cudagraph_mode.name.lower(),
        "capacity_tokens": capacity,
    }


def decoder(task: Task) -> str:
    """The decoder that runs: of our plugin, as its record names it. Raises without a record, or for another decoder or
    KV format.
    """
    if (expected := task.variant.decoder) == "stock":
        return expected
    actual = record.read(Path(os.environ[RECORD]))
    if actual.decoder != expected:
        raise RuntimeError(f"decoder: expected {expected}, got {actual.decoder}")
    if actual.kv_format != task.variant.kv_format:
        raise RuntimeError(f"KV format: expected {task.variant.kv_format}, got {actual.kv_format}")
    return actual.decoder


def kv_cache(llm):
    """vLLM's KVCacheConfig: blocks and groups."""
    return llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_config


def prepare(llm, task: Task) -> None:
    """Fill the cache, and spread the routing, in each rank."""
    if task.spread_routing:
        llm.collective_rpc("spread_routing")
    llm.collective_rpc("fill_cache", args=(task.variant.kv_format,))


def measure(llm, task: Task, cell: Cell, fields: dict) -> EngineRow:
    """The row of a cell; with an error if this engine cannot have it. Raises what breaks the engine."""
    engine, labels = llm.llm_engine, task.labels | fields
    try:
        batch = steps.batch_of(cell, kv_cache(llm), task.arguments["max_num_seqs"], task.steps)
        first = {}
        if cell.batch == 1:
            samples = steps.first_token_s(engine, cell.context, task.vocabulary)
            ttft_s = median(samples)
            first = {"ttft_s": ttft_s, "ttft_s_samples": samples, "prefill_tok_s": round(cell.context / ttft_s, 1)}
        with steps.decoding(engine, cell, batch, task.steps, task.vocabulary, task.prefill) as count:
            return row(labels, cell, **first, **steps.timed(engine, count, task.steps))
    except steps.CellError as error:
        return row(labels, cell, error=str(error))


def profile(llm, task: Task, cell: Cell) -> StepProfile:
    batch = steps.batch_of(cell, kv_cache(llm), task.arguments["max_num_seqs"], task.steps)
    with steps.decoding(llm.llm_engine, cell, batch, task.steps, task.vocabulary, task.prefill) as count:
        times = steps.kernels(llm.llm_engine, count)
    return StepProfile(cell=str(cell), kernels={task.variant.name: times})


if __name__ == "__main__":
    engine = main(Task.model_validate_json(Path(sys.argv[1]).read_bytes()))
    sys.stdout.flush()
    # Without the engine's teardown: all is written, vLLM 0.33's fails with torch 2.11, and workers are waited for.
    os._exit(0)
