"""The kernel that writes the cache compiles for each architecture without spills; no GPU needed."""

import itertools
import re
import shutil
import subprocess

import pytest
import torch

from lowp.cache_write import build
from lowp.cache_write.build import Variant

NVCC = shutil.which("nvcc")
ARCHITECTURES = ("sm_80", "sm_90a", "sm_120a", "sm_121a")
REGISTERS = 65_536  # of an SM
GPT_OSS = Variant(64, 8, 0, torch.bfloat16, torch.float8_e4m3fn, torch.bfloat16, False)
GPT_OSS_ROPE = Variant(64, 8, 64, torch.bfloat16, torch.float8_e4m3fn, torch.bfloat16, False)
VARIANTS = [
    Variant(head_dim, 8, query_heads, inputs, kv_dtype, table, count)
    for head_dim, query_heads, inputs, kv_dtype, table, count in itertools.product(
        (64, 128, 80),
        (0, 64),
        (torch.bfloat16, torch.float16),
        (torch.float8_e4m3fn, torch.int8, torch.bfloat16, torch.float16),
        (torch.float32, torch.bfloat16),
        (False, True),
    )
]


def check(arch: str, variant: Variant, folder) -> None:
    """Compile by nvcc: no warning, no spill, no stack, and registers for 1024 threads of an SM."""
    arch = arch.removeprefix("sm_")
    words = [NVCC, f"-gencode=arch=compute_{arch},code=sm_{arch}", "-std=c++17", "-Xptxas", "-v", "-cubin"]
    words += [f"-D{name}={value}" for name, value in build.defines(variant).items()]
    words += ["-o", str(folder / "kernel.cubin"), str(build.SOURCE.folder / build.SOURCE.files[0])]
    compiled = subprocess.run(words, capture_output=True, text=True)
    assert compiled.returncode == 0 and "warning" not in compiled.stderr, compiled.stderr
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in compiled.stderr
    registers = int(re.search(r"Used (\d+) registers", compiled.stderr)[1])
    assert registers * 1024 <= REGISTERS


@pytest.mark.skipif(NVCC is None, reason="needs nvcc; none here")
@pytest.mark.parametrize("variant", [GPT_OSS, GPT_OSS_ROPE], ids=["write", "rope"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gpt_oss_compiles(arch, variant, tmp_path):
    check(arch, variant, tmp_path)


@pytest.mark.compile
@pytest.mark.skipif(NVCC is None, reason="needs nvcc; none here")
@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_variant_compiles(arch, variant, tmp_path):
    check(arch, variant, tmp_path)
