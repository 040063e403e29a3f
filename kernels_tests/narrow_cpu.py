"""Emulate a CPU with AVX2 only for a vLLM server, by a plugin of group `vllm.platform_plugins`.

vLLM then loads its library for AVX2, and torch and oneDNN use their AVX2 kernels. Not emulated: libraries that query
the CPU themselves (tcmalloc, numpy, tokenizers), and the CPU's speed.
"""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = "_C_AVX2.abi3.so"
LIBRARIES = ("_C.abi3.so", "_C_AVX512.abi3.so", LIBRARY)


def register() -> None:
    """Hide AVX-512 and AMX in torch. vLLM calls this before it loads a library; None means no platform."""
    import torch

    for name in dir(torch.cpu):
        if name.startswith(("_is_avx512", "_is_amx")):
            setattr(torch.cpu, name, lambda: False)


def environment(folder: Path) -> dict[str, str]:
    """Install this plugin into `folder`; return the environment of a server that loads it."""
    info = folder / "fp8_sinks_narrow_cpu-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fp8-sinks-narrow-cpu\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[vllm.platform_plugins]\nnarrow = kernels_tests.narrow_cpu:register\n")
    return {
        "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT))),
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }


def loaded(pid: int) -> set[str]:
    """Return the CPU libraries of vLLM that a process has mapped."""
    files = {line.rpartition("/")[2].strip() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}
    return files & set(LIBRARIES)
