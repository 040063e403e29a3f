"""A write on its way to the driver, with stand-ins for the device and the driver: build, grid and parameters."""

import dataclasses

import pytest
import torch

from kernels_tests.lowp.stand_ins import A100, H200, launches_of, without_memory
from lowp.cache_write import cache_write, launch, rope_cache_write
from lowp.cache_write.cases import SCALES_IN_PAGE, Case, build

CASE = Case(tokens=40, slots=37, granularity="head", layout="interleaved", kv_heads=8, query_heads=64)


@pytest.fixture
def launched(monkeypatch):
    """Return a function that writes a case on tensors without memory: variant, grid, parameters and overlap."""

    def run(case, device, **options):
        launches = launches_of(launch, device, monkeypatch)
        arguments = without_memory(build(case))
        (rope_cache_write if case.rope else cache_write)(**arguments, **options)
        return launches.pop() if launches else None

    return run


def test_a_write(launched):
    (arch, variant), grid, params, overlap = launched(CASE, H200)
    assert (arch, variant.query_heads, variant.kv_heads, variant.count) == ("sm_90a", 0, 8, False)
    assert grid == (-(-37 * 16 * 4 // 256), 1, 1) and not overlap
    assert (params.tokens, params.cache_slots, params.page_shift) == (37, 144, 4)
    assert (params.page_stride, params.head_stride, params.slot_stride) == (8 * 16 * 128, 16 * 128, 128)
    assert (params.k_stride, params.v_stride) == (80 * 64 * 2,) * 2
    assert (params.k_scale_head, params.v_scale_head) == (1, 1)


def test_a_write_with_rotation(launched):
    counts = torch.empty(2, dtype=torch.int64, device="meta")
    case = dataclasses.replace(CASE, rope="table", layout="NHD", granularity="tensor")
    (arch, variant), grid, params, overlap = launched(case, H200, overlap=True, saturated=counts)
    assert (arch, variant.query_heads, variant.table_dtype, variant.count) == ("sm_90a", 64, torch.float32, True)
    assert grid == (-(-37 * 80 * 4 // 256), 1, 1) and overlap
    assert (params.table_stride, params.last_position) == (256, 199)
    assert (params.page_stride, params.head_stride, params.slot_stride) == (8 * 16 * 64, 64, 8 * 64)
    assert (params.k_scale_head, params.v_scale_head) == (0, 0)


def test_scales_that_the_call_computes(launched):
    case = dataclasses.replace(CASE, kv_format="int8", granularity="token_head", layout=SCALES_IN_PAGE)
    (_, variant), _, params, _ = launched(case, H200)
    assert (variant.computed_scales, variant.channel_scales) == (True, False)
    page_floats = 8 * 16 * 2 * (64 + 4) // 4
    assert (params.scale_page, params.scale_head, params.scale_slot) == (page_floats, 16, 1)
    assert (params.page_stride, params.head_stride, params.slot_stride) == (4 * page_floats, 16 * 128, 128)
    (_, variant), _, params, _ = launched(dataclasses.replace(case, layout="NHD"), H200)
    assert (params.scale_page, params.scale_head, params.scale_slot) == (16 * 8 * 3, 3, 8 * 3)


def test_scales_per_channel(launched):
    case = dataclasses.replace(CASE, kv_format="int8", granularity="channel", v_granularity="head")
    (_, variant), _, params, _ = launched(case, H200)
    assert (variant.computed_scales, variant.channel_scales) == (False, True)
    assert (params.k_scale_head, params.v_scale_head) == (0, 1) and not hasattr(params, "scale_page")


def test_dependent_launch_needs_sm_90(launched):
    assert launched(CASE, A100, overlap=True)[-1] is False


def test_no_tokens_launch_nothing(launched):
    assert launched(dataclasses.replace(CASE, slots=0), H200) is None
