"""The kernel that writes the cache compiles for each architecture without spills; no GPU needed."""

import itertools

import pytest
import torch

from kernels_tests.lowp.nvcc import ARCHITECTURES, check, needs_nvcc
from lowp.cache_write import build
from lowp.cache_write.build import Variant

GPT_OSS = Variant(64, 8, 0, torch.bfloat16, torch.float8_e4m3fn, torch.bfloat16, False)
GPT_OSS_ROPE = Variant(64, 8, 64, torch.bfloat16, torch.float8_e4m3fn, torch.bfloat16, False)
INT8_SCALES = {"computed": {"computed_scales": True}, "channel": {"channel_scales": True}}
INT8 = {
    f"{scales} {'rope' if query_heads else 'write'}": Variant(
        64, 8, query_heads, torch.bfloat16, torch.int8, torch.bfloat16, False, **options
    )
    for scales, options in INT8_SCALES.items()
    for query_heads in (0, 64)
}
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
] + [
    Variant(head_dim, 8, query_heads, inputs, torch.int8, table, count, **options)
    for head_dim, query_heads, inputs, table, count, options in itertools.product(
        (16, 64, 128, 512),
        (0, 64),
        (torch.bfloat16, torch.float16),
        (torch.float32, torch.bfloat16),
        (False, True),
        INT8_SCALES.values(),
    )
]


@needs_nvcc
@pytest.mark.parametrize("variant", [GPT_OSS, GPT_OSS_ROPE, *INT8.values()], ids=["write", "rope", *INT8])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gpt_oss_compiles(arch, variant, tmp_path):
    check(build.SOURCE, build.defines(variant), arch, tmp_path)


@pytest.mark.compile
@needs_nvcc
@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_variant_compiles(arch, variant, tmp_path):
    check(build.SOURCE, build.defines(variant), arch, tmp_path)
