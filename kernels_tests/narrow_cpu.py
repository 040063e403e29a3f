"""A CPU with AVX-512 or AMX as one with AVX2 alone, for a vLLM server: a plugin of group `vllm.platform_plugins`.

vLLM then takes its library for AVX2, and torch and oneDNN their kernels for it. What is not emulated: libraries that
ask the CPU themselves (tcmalloc, numpy, tokenizers), and the CPU's speed.
"""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = "_C_AVX2.abi3.so"
LIBRARIES = ("_C.abi3.so", "_C_AVX512.abi3.so", LIBRARY)


def register() -> None:
    """Hide AVX-512 and AMX from whoever asks torch. vLLM calls this before it loads a library; None: no platform."""
    import torch

    for name in dir(torch.cpu):
        if name.startswith(("_is_avx512", "_is_amx")):
            setattr(torch.cpu, name, lambda: False)


def environment(folder: Path) -> dict[str, str]:
    """The variables of a server with this plugin, which is installed into `folder`."""
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
    """Which of vLLM's CPU libraries a process has mapped."""
    files = {line.rpartition("/")[2].strip() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}
    return files & set(LIBRARIES)
