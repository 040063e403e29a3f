"""The decode kernel compiles for each architecture without spills and inside its shared memory; no GPU needed."""

import itertools
import sys
from random import Random

import pytest
import torch

from kernels_tests.lowp import sanitize
from kernels_tests.lowp.nvcc import REGISTERS, needs_nvcc, ptxas_report
from lowp.jit import driver
from lowp.jit.device import Device
from lowp.sink_decode import build, cost, heuristic, resources
from lowp.sink_decode.resources import Variant

# SMs and shared memory (a CTA, an SM) as the CUDA programming guide's table of compute capabilities has them.
DEVICES = {
    "sm_80": Device("sm_80", False, 108, 166_912, 167_936),
    "sm_90a": Device("sm_90a", True, 132, 232_448, 233_472),
    "sm_120a": Device("sm_120a", True, 188, 101_376, 102_400),
    "sm_121a": Device("sm_121a", True, 48, 101_376, 102_400),
}
GPT_OSS = Variant(64, 8, True, torch.float8_e4m3fn, False, False)
VARIANTS = [
    GPT_OSS,
    Variant(64, 8, True, torch.float8_e4m3fn, False, True),
    Variant(64, 8, True, torch.float8_e4m3fn, False, False, interleaved=True),
    Variant(64, 16, False, torch.float8_e4m3fn, True, True, interleaved=True),
    Variant(64, 8, True, torch.int8, True, False, channel_scales=True, query_tokens=4, interleaved=True),
    Variant(64, 8, True, torch.bfloat16, False, False),
    Variant(64, 16, False, torch.float8_e4m3fn, True, False),
    Variant(128, 8, True, torch.float8_e4m3fn, False, False),
    Variant(128, 8, False, torch.float8_e4m3fn, True, True),
    Variant(128, 5, True, torch.float16, True, True),
    Variant(128, 16, True, torch.bfloat16, False, False),
    Variant(64, 8, False, torch.bfloat16, False, False),
    Variant(128, 8, False, torch.bfloat16, True, True),
    Variant(128, 16, False, torch.bfloat16, False, False),
    Variant(64, 16, False, torch.bfloat16, False, True, query_tokens=3),
    Variant(128, 16, True, torch.float8_e4m3fn, True, True),
    Variant(64, 8, True, torch.int8, False, False),
    Variant(64, 8, True, torch.int8, True, False),
    Variant(64, 8, True, torch.int8, True, True),
    Variant(64, 8, True, torch.int8, True, False, channel_scales=True),
    Variant(128, 8, True, torch.int8, True, False, channel_scales=True),
    Variant(128, 8, True, torch.int8, True, True),
    Variant(128, 16, True, torch.int8, True, False),
    Variant(64, 8, True, torch.float8_e4m3fn, False, False, query_tokens=2),
    Variant(64, 8, True, torch.float8_e4m3fn, False, True, query_tokens=4),
    Variant(64, 2, True, torch.float8_e4m3fn, False, True, query_tokens=4),
    Variant(64, 8, True, torch.int8, True, True, channel_scales=True, query_tokens=4),
    Variant(64, 16, True, torch.int8, True, True, query_tokens=3),
    Variant(64, 16, True, torch.bfloat16, False, False, query_tokens=3),
    Variant(64, 5, True, torch.int8, True, True, query_tokens=3),
    Variant(64, 1, True, torch.int8, True, True, query_tokens=4),
    Variant(128, 8, True, torch.float8_e4m3fn, True, True, query_tokens=4),
    Variant(128, 8, True, torch.int8, True, True, channel_scales=True, query_tokens=4),
    Variant(128, 8, True, torch.bfloat16, False, False, query_tokens=4),
    Variant(128, 8, True, torch.int8, True, True, query_tokens=3),
    Variant(128, 16, True, torch.int8, True, True, query_tokens=2),
    Variant(64, 10, True, torch.int8, True, True, query_tokens=4),
    Variant(64, 8, True, torch.int8, True, False, interleaved=True),
    Variant(64, 8, True, torch.int8, False, False, channel_scales=True, interleaved=True),
]


GPT_OSS_VARIANTS = (*VARIANTS[:3], Variant(64, 8, True, torch.bfloat16, False, False))
BATCHES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 20, 24, 32, 36, 64, 100, 140, 256, 512)
LENGTHS = (
    *(200, 512, 720, 848, 1024, 1344, 1664, 1984, 2048, 2304, 2700, 3072, 3700, 4096),
    *(8192, 16_384, 20_000, 131_072),
)


def launches(variant: Variant, device: Device):
    """The launches that are chosen for 8 KV heads at BATCHES x LENGTHS; all candidates of gpt-oss."""
    if variant in GPT_OSS_VARIANTS:
        return dict.fromkeys(x for b in BATCHES for x in heuristic.candidates(variant, b, 8, 131_072, device))
    return dict.fromkeys(chosen(variant, b, n, device) for b, n in itertools.product(BATCHES, LENGTHS))


def chosen(variant, batch, bound, device, kv_heads=8):
    return heuristic.choose(variant, batch, kv_heads, bound, device, bound <= heuristic.NEAR_TOKENS)


def check(variant, launch, device, folder):
    registers, stack_bytes = ptxas_report(build.SOURCE, build.defines(variant, launch), device.arch, folder)
    shared_bytes = resources.shared_bytes(variant, launch)
    assert stack_bytes == 0
    assert shared_bytes <= device.shared_per_cta
    assert launch.min_ctas * (shared_bytes + 1024) <= device.shared_per_sm
    assert launch.min_ctas * launch.warps * 32 * registers <= REGISTERS


@needs_nvcc
@pytest.mark.parametrize(
    "variant",
    [GPT_OSS, Variant(64, 8, True, torch.int8, True, True, channel_scales=True, query_tokens=4)],
    ids=["e4m3", "int8, 4 query tokens"],
)
def test_the_first_launch_compiles(variant, tmp_path):
    device = DEVICES["sm_90a"]
    check(variant, heuristic.choose(variant, 1, 8, 2048, device), device, tmp_path)


@pytest.mark.compile
@needs_nvcc
@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
@pytest.mark.parametrize("arch", DEVICES)
def test_every_launch_compiles(arch, variant, tmp_path):
    device = DEVICES[arch]
    for launch in launches(variant, device):
        check(variant, launch, device, tmp_path)


def test_a_choice_is_legal_and_the_same_again():
    random, reach = Random(16), {}
    for _ in range(200):
        variant, device = random.choice(VARIANTS), random.choice(list(DEVICES.values()))
        batch, bound = round(1024 ** random.random()), round(16 * 8192 ** random.random())
        kv_heads, near = random.choice((1, 2, 8, 80)), random.random() < 0.5
        launch = heuristic.choose(variant, batch, kv_heads, bound, device, near)
        heuristic.choose.cache_clear()
        assert launch == heuristic.choose(variant, batch, kv_heads, bound, device, near)
        assert launch == resources.fit(variant, launch, device)
        assert launch.cluster == 0 or device.clusters
        reach.setdefault((variant, device), set()).update(heuristic.candidates(variant, batch, kv_heads, bound, device))
        assert launch in reach[variant, device]


@pytest.mark.parametrize("variant", [GPT_OSS, Variant(64, 8, True, torch.bfloat16, False, False)], ids=["e4m3", "bf16"])
def test_a_single_long_row_takes_at_most_double_the_planned_time(variant):
    """By the estimate, among short rows, against the best planned launch."""
    device = DEVICES["sm_90a"]
    for batch in BATCHES:
        shapes = heuristic.candidates(variant, batch, 8, 131_072, device)
        lengths = ((1, 8192), (batch - 1, 32)) if batch > 1 else ((1, 8192),)
        work = heuristic.work_of(variant, batch, 8, device)
        times = {launch: cost.call_us(work, shape, launch, lengths) for launch, shape in shapes.items()}
        planned = min(us for launch, us in times.items() if launch.cluster == 0)
        assert times[chosen(variant, batch, 131_072, device)] <= 2 * planned


def test_a_server_meets_few_launches():
    device = DEVICES["sm_90a"]
    assert len({chosen(GPT_OSS, batch, 131_072, device) for batch in range(1, 513)}) <= 17
    assert len({chosen(VARIANTS[1], batch, 128, device) for batch in range(1, 513)}) <= 8


def test_the_sanitizers_see_every_candidate():
    assert {launch for launch, _ in sanitize.fixed_launches()} >= set(launches(GPT_OSS, DEVICES["sm_90a"]))


@pytest.mark.parametrize("arch", DEVICES)
def test_clusters_and_workspace_fit_the_device(arch):
    device = DEVICES[arch]
    assert all(launch.cluster == 0 for launch in launches(GPT_OSS, device)) == (not device.clusters)
    for p, batch, kv_heads, length in itertools.product(VARIANTS, (1, 33, 700), (1, 8, 80), (200, 8192, 131_072)):
        launch = chosen(p, batch, length, device, kv_heads)
        assert 0 <= launch.cluster <= 8 and launch.stages >= 2 and launch.tiles <= 32 and 1 <= launch.warps <= 16
        assert 32 * launch.warps >= 8 * p.group_tiles
        if launch.cluster == 0:
            splits = kv_heads * resources.planned_splits(launch, kv_heads, device)
            needed = splits * resources.partials_bytes(p.group_tiles, p.head_dim) + 4 * batch * kv_heads
            columns = p.group * p.query_tokens * kv_heads
            assert resources.workspace_bytes(batch, columns, kv_heads, p.head_dim, device) >= needed


def test_a_variant_that_does_not_fit_raises():
    small = Device("sm_80", False, 1, 16_384, 16_384)
    with pytest.raises(NotImplementedError, match="does not fit 16384 bytes"):
        heuristic.choose(Variant(128, 16, True, torch.bfloat16, False, False), 1, 8, 100, small)


def test_a_missing_toolkit_raises(monkeypatch):
    driver.bindings.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    device = DEVICES["sm_90a"]
    chosen = heuristic.choose(GPT_OSS, 1, 8, 2048, device)
    with pytest.raises(RuntimeError, match=r"nvrtc is missing .*; install NVRTC and its bindings: pip install"):
        build.cubin(device.arch, GPT_OSS, chosen)
