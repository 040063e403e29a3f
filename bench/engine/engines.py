"""One start of an engine, in a supervised process: what it is given, how long it may take, why it ended."""

import re
import secrets
import sys
import time
from pathlib import Path

from bench.engine.cells import Cell
from bench.engine.environment import environment
from bench.engine.models import SHAPES, vocabulary
from bench.engine.request import EngineRun
from bench.engine.task import READY, Task, cell_path
from bench.engine.variants import BASE, Variant
from bench.record import files
from flashinfer_patches.files import writing
from vllm_launch.redaction import redact
from vllm_launch.server import supervised

MAX_MODEL_LEN = 131072
PREFILL_TOKENS = 8192
GPU_MEMORY, CPU_MEMORY = 0.9, 0.3
FINE_SIZES = 256  # batches of CUDA graphs: multiples of 8 up to this, of 16 above, as vLLM has them
START_LIMIT_S, CELL_LIMIT_S = 900.0, 300.0
CELL_S = 15.0  # no cell starts in a run's last seconds
OVER_S = 30.0  # after the run's end, for the last cell to end
GRACE_S, POLL_S = 10.0, 0.2
PROCESS = "bench.engine.inside.process"
WORKER = "bench.engine.inside.worker.BenchWorker"
REASON_CHARACTERS = 300
# A traceback's last line; torch.distributed puts the rank before each line of the last one.
ERROR = re.compile(r"^(?:\[rank\d+\]: )?((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*)")


class ProcessFailed(Exception):
    """The engine's process died or hung; the text says why."""


def arguments(run: EngineRun, variant: Variant, model: Path) -> dict:
    """Arguments of vllm.LLM."""
    most = SHAPES[run.request.shape].most_sequences
    common = {
        "model": str(model),
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "dtype": "bfloat16",
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": most,
        "max_num_batched_tokens": PREFILL_TOKENS,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "seed": 0,
        "tensor_parallel_size": run.request.tensor_parallel,
        "worker_extension_cls": WORKER,
    }
    if run.device == "cpu":
        return common | {"enforce_eager": True, "gpu_memory_utilization": CPU_MEMORY} | variant.arguments
    compilation = {"cudagraph_capture_sizes": graph_sizes(run.cells, most)}
    if run.request.compilation == "none":
        compilation |= {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    if run.request.tensor_parallel > 1:
        compilation |= {"pass_config": {"fuse_allreduce_rms": False}}  # see environment.OF_RANKS
    return common | {"gpu_memory_utilization": GPU_MEMORY, "compilation_config": compilation} | variant.arguments


def graph_sizes(cells: list[Cell], most: int) -> list[int]:
    """Batches to capture CUDA graphs of: those of the cells, and a grid of all where one of them fills the cache."""
    sizes = {cell.batch for cell in cells if cell.batch and cell.batch <= most}
    if any(cell.batch is None for cell in cells):
        sizes |= {*range(8, min(most, FINE_SIZES) + 1, 8), *range(FINE_SIZES, most + 1, 16), most}
    return sorted(sizes) or [most]


def labels(run: EngineRun, variant: Variant, start: int) -> dict:
    """Fields of EngineRow that are known before the start."""
    return {
        "variant": variant.name,
        "start": start,
        "vllm": run.vllm,
        "compilation": run.request.compilation,
        "decoder": variant.decoder,
        "kv_format": variant.kv_format,
        "tensor_parallel": run.request.tensor_parallel,
        "cache": "prefilled" if run.request.prefill else "assumed",
    }


def measure(
    run: EngineRun, variant: Variant, start: int, cells: list[Cell], folder: Path, end: float, profile: bool = False
) -> None:
    """Start the engine and measure its cells, until the Unix time `end`. Raises ProcessFailed.

    folder: for the rows, absent or that of an interrupted start. Time that is up is no failure: cells then lack rows.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (READY, "record.json"):
            (folder / name).unlink(missing_ok=True)
        task = Task(
            labels=labels(run, variant, start),
            arguments=arguments(run, variant, run.folder / "model"),
            folder=str(folder.resolve()),
            cells=[str(cell) for cell in cells],
            steps=run.request.steps,
            vocabulary=vocabulary(run.request.shape),
            spread_routing=run.request.routing == "spread",
            prefill=run.request.prefill,
            profile=profile,
            until=end - CELL_S,
        )
        files.write(task, folder / "task.json")
    log = run.folder.resolve() / f"{folder.name}.log"
    command = [sys.executable, "-m", PROCESS, str(folder.resolve() / "task.json")]
    nonce = f"fp8-sinks-{secrets.token_hex(8)}"
    variables = environment(run, variant, nonce, folder.resolve() / "record.json")
    name = f"{variant.name}, start {start}"
    wait(command, variables, log, end, lambda: progress(folder, cells, name, run.status))


def read_ceiling(run: EngineRun, path: Path) -> None:
    """Measure the GPU's read ceiling in a process of its own, which leaves no memory in use. Raises ProcessFailed."""
    command = [sys.executable, "-m", "bench.kernels.ceiling", str(path.resolve())]
    variables = environment(run, BASE, f"fp8-sinks-{secrets.token_hex(8)}", path)
    run.status("read ceiling")
    started = time.time()
    wait(
        command,
        variables,
        run.folder.resolve() / "ceiling.log",
        started + CELL_LIMIT_S,
        lambda: (started, CELL_LIMIT_S),
    )


def progress(folder: Path, cells: list[Cell], name: str, status) -> tuple[float, float] | None:
    """Unix time of the last sign of life, None before there is any, and the seconds until the next one must come."""
    measured = [path for cell in cells if (path := cell_path(folder, cell)).exists()]
    ready = (folder / READY).exists()
    status(f"{name}: {f'cell {len(measured) + 1} of {len(cells)}' if ready else 'starting'}")
    signs = [path.stat().st_mtime for path in (folder / "task.json", folder / READY, *measured) if path.exists()]
    return max(signs), CELL_LIMIT_S if ready else START_LIMIT_S


def wait(command: list[str], variables: dict[str, str], log: Path, end: float, alive) -> None:
    """Run a command until it ends, or until OVER_S after `end`. Raises ProcessFailed if it fails or hangs.

    alive: returns the Unix time of the last sign of life, and for how long it may be silent.
    """
    offset = log.stat().st_size if log.exists() else 0
    with supervised(command, variables, log, GRACE_S) as supervisor:
        while supervisor.poll() is None:
            last, limit = alive()
            if time.time() - last > limit:
                raise ProcessFailed(f"no sign of life for {limit:.0f} s")
            if time.time() > end + OVER_S:
                return
            time.sleep(POLL_S)
        code = supervisor.returncode
    if code:
        raise ProcessFailed(reason(log, offset, code))


def reason(log: Path, offset: int, code: int) -> str:
    """Why a process ended: its last line that names an error, and its exit code."""
    text = log.read_bytes()[offset:].decode("utf-8", errors="replace") if log.exists() else ""
    errors = [match[1] for line in text.splitlines() if (match := ERROR.match(line))]
    message = redact(" ".join(errors[-1].split()))[:REASON_CHARACTERS] if errors else "the engine's process died"
    return f"{message} (exit code {code})"
