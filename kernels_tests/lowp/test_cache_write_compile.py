"""The kernel that writes the cache compiles for each architecture without spills; no GPU needed."""

import itertools

import pytest
import torch

from kernels_tests.lowp.nvcc import ARCHITECTURES, check, needs_nvcc
from lowp.cache_write import build
from lowp.cache_write.build import Variant

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


@needs_nvcc
@pytest.mark.parametrize("variant", [GPT_OSS, GPT_OSS_ROPE], ids=["write", "rope"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gpt_oss_compiles(arch, variant, tmp_path):
    check(build.SOURCE, build.defines(variant), arch, tmp_path)


@pytest.mark.compile
@needs_nvcc
@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_variant_compiles(arch, variant, tmp_path):
    check(build.SOURCE, build.defines(variant), arch, tmp_path)
