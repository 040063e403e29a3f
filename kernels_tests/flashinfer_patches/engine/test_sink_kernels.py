"""`fp8-sinks cache build` in a process of its own, with a fake torch that sees a GPU and a fake FlashInfer."""

import json
import os
import sys
from pathlib import Path

import pytest

from flashinfer_patches import engine
from flashinfer_patches.errors import EXIT_CODES
from kernels_tests.flashinfer_patches.engine.worlds import TORCH, write
from kernels_tests.processes import completed

COMMAND = """
import sys
from pathlib import Path
from flashinfer_patches import series
series.ROOT = Path(sys.argv.pop(1))
from fp8_sinks.cache import cache
cache(["build", *sys.argv[1:]])
"""
ENV = b"""
import os
from pathlib import Path
FLASHINFER_WORKSPACE_DIR = Path(os.environ["FLASHINFER_WORKSPACE_BASE"], "0.6.14", "90a")
FLASHINFER_WORKSPACE_DIR.mkdir(parents=True, exist_ok=True)
"""
SINKS = b"""
from flashinfer.jit.env import FLASHINFER_WORKSPACE_DIR
def sink_module(*arguments):
    with open(FLASHINFER_WORKSPACE_DIR / "built", "a") as file:
        print(*arguments, file=file)
"""
GPU = b"""
__version__, int32, bfloat16, float8_e4m3fn = "2.11.0", "int32", "bfloat16", "float8_e4m3fn"
class cuda:
    is_available = staticmethod(lambda: True)
"""
NAMES = ["sm90a-sinks-bfloat16-bfloat16-64", "sm90a-sinks-bfloat16-float8_e4m3fn-64"]


@pytest.fixture
def world(tmp_path, site, root):
    """A folder with all that a build needs: a patched FlashInfer, torch, a toolkit and ninja."""
    engine.apply(site, root)
    write(
        site, {"flashinfer/jit/__init__.py": b"", "flashinfer/jit/env.py": ENV, "flashinfer/attention_sinks.py": SINKS}
    )
    write(site, {"torch/__init__.py": GPU, "torch/version.py": TORCH})
    write(tmp_path, {"cuda/bin/nvcc": b"", "cuda/include/cuda_runtime.h": b"", "bin/ninja": b""})
    (tmp_path / "bin" / "ninja").chmod(0o755)
    return tmp_path


def build(world, *words):
    """Run the command in the world, without access to /usr/local/cuda and the ninja beside this Python."""
    hide = "from flashinfer_patches import sink_kernels as s; s.sys.executable = '/x/python'; real = s.Path.is_file\n"
    hide += "s.Path.is_file = lambda path: not str(path).startswith('/usr/local/') and real(path)\n"
    command = [sys.executable, "-c", hide + COMMAND, str(world / "series"), "--root", str(world / "caches"), *words]
    paths = [str(world / "site"), str(Path(engine.__file__).parents[1])]
    environment = {"PATH": str(world / "bin"), "CUDA_HOME": str(world / "cuda"), "HOME": os.environ["HOME"]}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return completed(command, 60, env=environment)


def test_the_modules_of_gpt_oss_are_built_once(world):
    first = json.loads(build(world, "--json").stdout)
    assert [(module["name"], module["built"]) for module in first["modules"]] == [(name, True) for name in NAMES]
    assert all(module["seconds"] >= 0 for module in first["modules"])
    (built,) = (world / "caches").rglob("90a/built")
    assert built.is_relative_to(first["path"]) and Path(first["path"]).name.startswith("flashinfer-0.6.14+")
    arguments = "bfloat16 bfloat16 bfloat16 int32 64 64\nbfloat16 float8_e4m3fn bfloat16 int32 64 64\n"
    assert built.read_text() == arguments
    second = build(world)
    assert second.stdout == "".join(f"{name}: cached\n" for name in NAMES) + f"{first['path']}\n"
    assert built.read_text() == arguments


def test_each_gpu_architecture_is_built_separately(world):
    build(world)
    write(world / "site", {"flashinfer/jit/env.py": ENV.replace(b'"90a"', b'"121a"')})
    process = build(world)
    assert process.stdout.startswith("sm121a-sinks-bfloat16-bfloat16-64: built in ")


def refused(process, kind, message, remedy):
    assert process.returncode == EXIT_CODES[kind] and process.stdout == ""
    first, second = process.stderr.splitlines()
    assert message in first and remedy in second


def test_without_a_patched_flashinfer(world):
    engine.revert(world / "site", world / "series")
    refused(build(world), "build", "is clean; expected: applied", "fp8-sinks patch apply")
    (world / "site" / "flashinfer" / "__init__.py").unlink()
    refused(build(world), "target", "no FlashInfer is installed", "--target")


def test_without_toolkit_ninja_or_gpu(world):
    write(world / "site", {"torch/__init__.py": GPU.replace(b"True", b"False")})
    refused(build(world), "build", "torch 2.11.0 sees no GPU", "on a machine with a GPU")
    (world / "bin" / "ninja").unlink()
    refused(build(world), "build", "ninja, which FlashInfer compiles with, is not on PATH", "pip install ninja")
    (world / "cuda" / "bin" / "nvcc").unlink()
    refused(build(world), "build", "no CUDA toolkit", "set CUDA_HOME")
    assert not (world / "caches").exists(), "a refusal creates nothing"


def test_a_failed_compilation_and_a_failed_import(world):
    failing = SINKS.replace(
        b"    with", b'    raise RuntimeError("Ninja build failed.\\nx.cu(3): error: no\\nend")\n    with'
    )
    write(world / "site", {"flashinfer/attention_sinks.py": failing})
    refused(build(world), "build", f"cannot compile {NAMES[0]}: x.cu(3): error: no", "FLASHINFER_JIT_VERBOSE=1")
    write(world / "site", {"flashinfer/attention_sinks.py": SINKS})
    assert json.loads(build(world, "--json").stdout)["modules"][0]["built"], "a failed build is repeated"
    write(world / "site", {"flashinfer/jit/__init__.py": b"import tvm_ffi_of_another_world"})
    refused(build(world), "build", "No module named 'tvm_ffi_of_another_world'", "install its dependencies")
