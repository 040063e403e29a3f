"""The kernel of `cache_write` compiled for a CPU, to run instead of the reference where there is no GPU."""

import ctypes
import functools
import shutil
import subprocess
from pathlib import Path

from kernels_tests.lowp.stand_ins import H200, launches_of
from lowp.cache_write import build, launch, reference

HOST = Path(__file__).parent / "host"
WARP = 32  # threads of a CTA on a CPU


def replace_reference(folder: Path, monkeypatch) -> None:
    """Let `cache_write` on CPU tensors run the kernel. folder: for its builds."""
    launches = launches_of(launch, H200, monkeypatch)

    def write(call):
        launch.run(call)
        (_, variant), (ctas, _, _), params, _ = launches.pop()
        library(folder, variant).run(ctypes.byref(params), ctas * build.THREADS // WARP)

    monkeypatch.setattr(reference, "write", write)


@functools.cache
def library(folder: Path, variant: build.Variant) -> ctypes.CDLL:
    """Compile a variant with g++ and load it."""
    sources = folder / str(len(list(folder.iterdir())))
    sources.mkdir()
    for path in (build.SOURCE.folder / "kernel.cu", build.SOURCE.folder / "convert.cuh", *HOST.iterdir()):
        shutil.copy(path, sources)
    defines = build.defines(variant) | {"THREADS": WARP}
    options = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC"]
    options += [f"-D{name}={value}" for name, value in defines.items()]
    subprocess.run(["g++", *options, "-o", sources / "kernel.so", sources / "cache_write.cpp"], check=True)
    return ctypes.CDLL(str(sources / "kernel.so"))
