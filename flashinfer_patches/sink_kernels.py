"""Compile the sink kernels that gpt-oss needs ahead of their first use.

For `fp8-sinks cache build` and programs that call FlashInfer themselves. Stock vLLM uses other modules of FlashInfer.
"""

import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path

from flashinfer_patches import engine, jit_cache
from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Strict

WORKSPACE = "FLASHINFER_WORKSPACE_BASE"
# (query type, KV cache type, head_dim). Each module covers decode, prefill and sliding windows.
GPT_OSS = (("bfloat16", "bfloat16", 64), ("bfloat16", "float8_e4m3fn", 64))


class Module(Strict):
    """A compiled module.

    name: GPU architecture, query type, KV cache type, head_dim. built: by this call. seconds: to build it, or to wait
    for another process to build it.
    """

    name: str
    built: bool
    seconds: float


class Kernels(Strict):
    """The folder of the kernels (FLASHINFER_WORKSPACE_BASE) and the modules for gpt-oss in it."""

    path: Path
    modules: list[Module]


def build(root: Path = jit_cache.ROOT, timeout_s: float = jit_cache.BUILD_TIMEOUT_S) -> Kernels:
    """Compile and load the sink modules for this machine's GPU, unless the cache has them.

    Imports FlashInfer with its cache below `root` and starts CUDA: call it in a process that has not imported
    FlashInfer, and that does not use CUDA in later forks. timeout_s: maximum wait for another builder, for each module.
    Raises Problem: "target" without FlashInfer; "build" if it is not patched, if torch, a GPU, nvcc or ninja is
    missing, or if the compilation fails; those of jit_cache.workspace and jit_cache.built_once. Raises ValueError if
    FlashInfer is imported already, with another cache.
    """
    _prepare()
    folder = jit_cache.make(jit_cache.workspace(root))
    if "flashinfer" in sys.modules and os.environ.get(WORKSPACE) != str(folder):
        raise ValueError(f"flashinfer is imported already, with {WORKSPACE}={os.environ.get(WORKSPACE)}, not {folder}")
    os.environ[WORKSPACE] = str(folder)
    try:
        from flashinfer.jit import env
    except ImportError as error:
        raise Problem("build", f"FlashInfer cannot be imported: {error}", "install its dependencies") from error
    arch = env.FLASHINFER_WORKSPACE_DIR.name
    return Kernels(path=folder, modules=[_built(folder, arch, *types, timeout_s) for types in GPT_OSS])


def _prepare() -> None:
    """Set PATH and CUDA_HOME for FlashInfer; raise Problem("build") if a tool is missing."""
    status = engine.status()
    if status.state != "applied":
        raise Problem(
            "build",
            f"FlashInfer {status.version} in {status.target} is {status.state}; expected: applied",
            "run: fp8-sinks patch apply",
        )
    # FlashInfer runs ninja from PATH; a virtual environment has it beside its Python.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    cuda = toolkit()
    if cuda is None:
        raise Problem(
            "build",
            "no CUDA toolkit (bin/nvcc and include/cuda_runtime.h) in CUDA_HOME, beside nvcc on PATH or in"
            " /usr/local/cuda",
            "install the toolkit of torch's CUDA version, and set CUDA_HOME to its folder",
        )
    os.environ["CUDA_HOME"] = str(cuda)
    if shutil.which("ninja") is None:
        raise Problem("build", "ninja, which FlashInfer compiles with, is not on PATH", "pip install ninja")
    try:
        import torch
    except ImportError as error:
        raise Problem("build", f"torch cannot be imported: {error}", "install torch for CUDA") from error
    if not torch.cuda.is_available():
        raise Problem("build", f"torch {torch.__version__} sees no GPU", "run this on a machine with a GPU")


def toolkit() -> Path | None:
    """Return the CUDA toolkit to compile with: a folder with bin/nvcc and the headers; None without a toolkit."""
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    required = ("bin/nvcc", "include/cuda_runtime.h")
    folders = (Path(folder) for folder in candidates if folder)
    return next((folder for folder in folders if all((folder / name).is_file() for name in required)), None)


def _built(folder: Path, arch: str, q_type: str, kv_type: str, head_dim: int, timeout_s: float) -> Module:
    name = f"sm{arch}-sinks-{q_type}-{kv_type}-{head_dim}"
    start = time.monotonic()
    try:
        built = jit_cache.built_once(folder, name, partial(compile_module, q_type, kv_type, head_dim), timeout_s)
    except RuntimeError as error:  # FlashInfer's, with the compiler's output
        lines = str(error).strip().splitlines() or [""]
        reason = next((line for line in lines if "error" in line.lower()), lines[-1]).strip()
        raise Problem(
            "build",
            f"FlashInfer cannot compile {name}: {reason}",
            "see the compiler's output: FLASHINFER_JIT_VERBOSE=1 fp8-sinks cache build",
        ) from error
    return Module(name=name, built=built, seconds=time.monotonic() - start)


def compile_module(q_type: str, kv_type: str, head_dim: int) -> None:
    """Let FlashInfer compile and load a sink module: int32 page tables, output in the query's type."""
    import torch
    from flashinfer.attention_sinks import sink_module

    q, kv = getattr(torch, q_type), getattr(torch, kv_type)
    sink_module(q, kv, q, torch.int32, head_dim, head_dim)
