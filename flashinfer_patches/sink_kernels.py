"""Compile the sink kernels that gpt-oss needs, once, before anything waits for them.

Called by `fp8-sinks cache build`, for users of FlashInfer itself. No server of ours calls it: stock vLLM asks
FlashInfer for other modules than these.
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
# (query, KV cache, head_dim) as torch and gpt-oss name them. One module serves decode, prefill and sliding windows.
GPT_OSS = (("bfloat16", "bfloat16", 64), ("bfloat16", "float8_e4m3fn", 64))


class Module(Strict):
    """One compiled module. name: GPU architecture, query type, KV cache type, head_dim. built: now, not earlier.

    seconds: for building it, or for waiting until another process had.
    """

    name: str
    built: bool
    seconds: float


class Kernels(Strict):
    """The folder that holds the kernels (FLASHINFER_WORKSPACE_BASE), and what is in it for gpt-oss."""

    path: Path
    modules: list[Module]


def build(root: Path = jit_cache.ROOT, timeout_s: float = jit_cache.BUILD_TIMEOUT_S) -> Kernels:
    """Compile and load the sink modules for this machine's GPU; those that are in the cache already are left alone.

    Imports FlashInfer, with its cache moved below `root`, and starts CUDA: call it in a process that has not imported
    FlashInfer yet, and whose later forks do not use CUDA. timeout_s: for another builder, in each module. Raises
    Problem: "target" where no FlashInfer is installed; "build" where it is not patched, where torch, a GPU, nvcc or
    ninja is missing, or where the compilation fails; and what jit_cache.workspace and jit_cache.built_once raise.
    ValueError where FlashInfer is imported already, with another cache.
    """
    _prepare()
    folder = jit_cache.make(jit_cache.workspace(root))
    if "flashinfer" in sys.modules and os.environ.get(WORKSPACE) != str(folder):
        raise ValueError(f"flashinfer is imported already, with {WORKSPACE}={os.environ.get(WORKSPACE)}, not {folder}")
    os.environ[WORKSPACE] = str(folder)
    try:
        from flashinfer.jit import env
    except ImportError as error:
        raise Problem("build", f"FlashInfer cannot be imported: {error}", "install what it depends on") from error
    arch = env.FLASHINFER_WORKSPACE_DIR.name
    return Kernels(path=folder, modules=[_built(folder, arch, *one, timeout_s) for one in GPT_OSS])


def _prepare() -> None:
    """Set PATH and CUDA_HOME to where FlashInfer finds its tools; Problem("build") where nothing can be built."""
    found = engine.status()
    if found.state != "applied":
        raise Problem(
            "build",
            f"FlashInfer {found.version} in {found.target} is {found.state}; expected the patch series applied",
            "run: fp8-sinks patch apply",
        )
    # FlashInfer looks for ninja on PATH: that of a virtual environment lies beside its Python.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    cuda = toolkit()
    if cuda is None:
        raise Problem(
            "build",
            "no CUDA toolkit (bin/nvcc and include/cuda_runtime.h) in CUDA_HOME, beside nvcc on PATH or in"
            " /usr/local/cuda",
            "install one of torch's CUDA version, and set CUDA_HOME to its folder",
        )
    os.environ["CUDA_HOME"] = str(cuda)
    if shutil.which("ninja") is None:
        raise Problem("build", "no ninja on PATH; FlashInfer compiles with it", "pip install ninja")
    try:
        import torch
    except ImportError as error:
        raise Problem("build", f"torch cannot be imported: {error}", "install torch for CUDA") from error
    if not torch.cuda.is_available():
        raise Problem("build", f"torch {torch.__version__} sees no GPU", "run this on a machine with one")


def toolkit() -> Path | None:
    """The CUDA toolkit to compile with: a folder with bin/nvcc and the headers beside it; None where there is none."""
    found = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), found and Path(found).resolve().parents[1], "/usr/local/cuda"]
    wanted = ("bin/nvcc", "include/cuda_runtime.h")
    return next((Path(p) for p in places if p and all((Path(p) / name).is_file() for name in wanted)), None)


def _built(folder: Path, arch: str, q_type: str, kv_type: str, head_dim: int, timeout_s: float) -> Module:
    name = f"sm{arch}-sinks-{q_type}-{kv_type}-{head_dim}"
    began = time.monotonic()
    try:
        built = jit_cache.built_once(folder, name, partial(compile_module, q_type, kv_type, head_dim), timeout_s)
    except RuntimeError as error:  # FlashInfer's, with all that the compiler said
        lines = str(error).strip().splitlines() or [""]
        said = next((line for line in lines if "error" in line.lower()), lines[-1]).strip()
        raise Problem(
            "build",
            f"FlashInfer cannot compile {name}: {said}",
            "see all that the compiler says: FLASHINFER_JIT_VERBOSE=1 fp8-sinks cache build",
        ) from error
    return Module(name=name, built=built, seconds=time.monotonic() - began)


def compile_module(q_type: str, kv_type: str, head_dim: int) -> None:
    """Have the patched FlashInfer compile and load a sink module: int32 page tables, output in the query's type."""
    import torch
    from flashinfer.attention_sinks import sink_module

    q, kv = getattr(torch, q_type), getattr(torch, kv_type)
    sink_module(q, kv, q, torch.int32, head_dim, head_dim)
