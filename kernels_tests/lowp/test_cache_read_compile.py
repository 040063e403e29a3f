"""The kernel that reads the cache compiles for each architecture without spills; no GPU needed."""

import itertools

import pytest
import torch

from kernels_tests.lowp.nvcc import ARCHITECTURES, check, needs_nvcc
from lowp.cache_read import build
from lowp.cache_read.build import Variant

GPT_OSS = Variant(64, 8, torch.float8_e4m3fn, torch.bfloat16)
SCALES = [(False, False), (True, False)]
VARIANTS = [
    Variant(head_dim, kv_heads, kv_dtype, out, *scales)
    for (head_dim, kv_heads), out in itertools.product(
        ((64, 8), (64, 1), (128, 8), (96, 5)), (torch.bfloat16, torch.float16)
    )
    for kv_dtype, granularities in (
        (torch.float8_e4m3fn, SCALES),
        (torch.int8, [*SCALES, (False, True), (True, True)]),
        (torch.bfloat16, SCALES[:1]),
        (torch.float16, SCALES[:1]),
    )
    for scales in granularities
]


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gpt_oss_compiles(arch, tmp_path):
    check(build.SOURCE, build.defines(GPT_OSS), arch, tmp_path)


@pytest.mark.compile
@needs_nvcc
@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_variant_compiles(arch, variant, tmp_path):
    check(build.SOURCE, build.defines(variant), arch, tmp_path)
