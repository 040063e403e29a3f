"""A write on its way to the driver, with stand-ins for the device and the driver: build, grid and parameters."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch

from kernels_tests.lowp.cache_writes import Case, build
from lowp.cache_write import cache_write, launch, rope_cache_write
from lowp.jit.device import Device

H200 = Device("sm_90a", True, 132, 232_448, 233_472)
A100 = Device("sm_80", False, 108, 166_912, 167_936)
CASE = Case(tokens=40, slots=37, granularity="head", layout="interleaved", kv_heads=8, query_heads=64)


def without_memory(x):
    if not isinstance(x, torch.Tensor):
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


@pytest.fixture
def launched(monkeypatch):
    """Return a function that writes a case on tensors without memory: variant, grid, parameters and overlap."""
    launches = []
    monkeypatch.setattr(launch.build, "kernel", lambda arch, variant, _index: (arch, variant))
    monkeypatch.setattr(launch.launcher, "launch", lambda *args, overlap: launches.append((*args, overlap)))
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())

    def run(case, device, **options):
        monkeypatch.setattr(launch, "device_of", lambda _device: device)
        arguments = {name: without_memory(x) for name, x in build(case).items()}
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


def test_dependent_launch_needs_sm_90(launched):
    assert launched(CASE, A100, overlap=True)[-1] is False


def test_no_tokens_launch_nothing(launched):
    assert launched(dataclasses.replace(CASE, slots=0), H200) is None
