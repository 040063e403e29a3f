"""A read on its way to the driver, with stand-ins for the device and the driver: build, grid and parameters."""

import dataclasses

import pytest
import torch

from kernels_tests.lowp.stand_ins import A100, H200, launches_of, without_memory
from lowp.cache_read import cache_read, launch
from lowp.cache_read.cases import Case, build

CASE = Case((40, 100), kv_heads=8, granularity="head", layout="interleaved")  # 145 rows, 5 of them no sequence's


@pytest.fixture
def launched(monkeypatch):
    """Return a function that reads a case on tensors without memory: variant, grid, parameters and overlap."""

    def run(case, device, *, changes=None, **options):
        launches = launches_of(launch, device, monkeypatch)
        cache_read(**without_memory(build(case) | (changes or {})), **options)
        return launches.pop() if launches else None

    return run


def test_a_read(launched):
    (arch, variant), grid, params, overlap = launched(CASE, H200)
    assert (arch, variant.kv_dtype, variant.out_dtype) == ("sm_90a", torch.float8_e4m3fn, torch.bfloat16)
    assert not variant.token_scales and not variant.channel_scales
    assert grid == (-(-37 * 64 // 256), 1, 1) and not overlap  # 37 times 4 rows, 64 threads a token
    assert (params.sequences, params.rows, params.page_shift, params.table_tokens) == (2, 145, 4, 10 * 16)
    assert (params.page_stride, params.head_stride, params.slot_stride) == (8 * 16 * 128, 16 * 128, 128)
    assert (params.k_out_stride, params.v_out_stride, params.table_stride) == (1024, 1024, 12)
    assert (params.k_scale_page, params.k_scale_head, params.k_scale_slot) == (0, 1, 0)
    assert params.pages == 3 + 7 + 3


def test_a_read_of_16_bits(launched):
    case = dataclasses.replace(CASE, kv_format="fp16", granularity="none", layout="NHD", joined=True)
    (_, variant), grid, params, _ = launched(case, H200)
    assert variant.thread_rows == 2 and grid == (-(-73 * 64 // 256), 1, 1)
    assert (params.page_stride, params.head_stride, params.slot_stride) == (8 * 16 * 128, 128, 8 * 128)
    assert params.k_out_stride == 2048


@pytest.mark.parametrize(("layout", "strides"), [("NHD", (256, 2, 16)), ("HND", (256, 32, 2))])
def test_scales_of_each_token(launched, layout, strides):
    case = dataclasses.replace(CASE, granularity="token_head", v_granularity="tensor", layout=layout)
    (_, variant), _, params, _ = launched(case, H200)
    assert variant.token_scales
    assert (params.k_scale_page, params.k_scale_head, params.k_scale_slot) == strides
    assert (params.v_scale_page, params.v_scale_head, params.v_scale_slot) == (0, 0, 0)


def test_scales_of_each_channel(launched):
    case = dataclasses.replace(CASE, kv_format="int8", granularity="channel", v_granularity="head")
    (_, variant), _, params, _ = launched(case, H200)
    assert variant.channel_scales and not variant.token_scales and params.v_scale_head == 1


def test_dependent_launch_needs_sm_90(launched):
    assert launched(CASE, A100, overlap=True)[-1] is False
    assert launched(CASE, H200, overlap=True)[-1] is True


def test_no_rows_or_sequences_launch_nothing(launched):
    arguments = build(CASE)
    assert launched(CASE, H200, changes={name: arguments[name][:0] for name in ("k_out", "v_out")}) is None
    empty = {"cu_out": arguments["cu_out"][:1]} | {name: arguments[name][:0] for name in ("block_table", "ends")}
    assert launched(CASE, H200, changes=empty) is None
