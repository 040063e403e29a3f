"""Compile a kernel by nvcc, for tests: no warning, no spill, and what ptxas says of its registers. No GPU needed."""

import re
import shutil
import subprocess

import pytest

NVCC = shutil.which("nvcc")
ARCHITECTURES = ("sm_80", "sm_90a", "sm_120a", "sm_121a")
REGISTERS = 65_536  # of an SM

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc; none here")


def ptxas_report(source, defines: dict[str, int], arch: str, folder) -> tuple[int, int]:
    """Compile without a warning; return (registers a thread, bytes of stack and spills)."""
    arch = arch.removeprefix("sm_")
    words = [NVCC, f"-gencode=arch=compute_{arch},code=sm_{arch}", "-std=c++17", "-Xptxas", "-v", "-cubin"]
    words += [f"-D{name}={value}" for name, value in defines.items()]
    words += ["-o", str(folder / "kernel.cubin"), str(source.folder / source.files[0])]
    compiled = subprocess.run(words, capture_output=True, text=True)
    assert compiled.returncode == 0 and "warning" not in compiled.stderr, compiled.stderr
    registers = re.search(r"Used (\d+) registers", compiled.stderr)
    memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", compiled.stderr)
    return int(registers[1]), sum(map(int, memory.groups()))


def check(source, defines: dict[str, int], arch: str, folder) -> None:
    """Compile: no warning, no stack, no spill, and registers for 1024 threads of an SM."""
    registers, stack_bytes = ptxas_report(source, defines, arch, folder)
    assert stack_bytes == 0 and registers * 1024 <= REGISTERS
