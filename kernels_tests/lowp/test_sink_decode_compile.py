"""The decode kernel compiles for each architecture without spills and inside its shared memory; no GPU needed."""

import itertools
import re
import shutil
import subprocess
import sys

import pytest
import torch

from kernels_tests.lowp import sanitize
from lowp.jit import driver
from lowp.jit.device import Device
from lowp.paged import cases
from lowp.sink_decode import build, heuristic, resources
from lowp.sink_decode.resources import Variant

NVCC = shutil.which("nvcc")
# SMs and shared memory (a CTA, an SM) as the CUDA programming guide's table of compute capabilities has them.
DEVICES = {
    "sm_80": Device("sm_80", False, 108, 166_912, 167_936),
    "sm_90a": Device("sm_90a", True, 132, 232_448, 233_472),
    "sm_120a": Device("sm_120a", True, 188, 101_376, 102_400),
    "sm_121a": Device("sm_121a", True, 48, 101_376, 102_400),
}
REGISTERS = 65_536
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
]


BATCHES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 20, 24, 32, 36, 64, 100, 140, 256, 512)
LENGTHS = (
    *(200, 512, 720, 848, 1024, 1344, 1664, 1984, 2048, 2304, 2700, 3072, 3700, 4096),
    *(8192, 16_384, 20_000, 131_072),
)


def launches(variant: Variant, device: Device):
    """Every launch that is chosen for 8 KV heads and the variant: of BATCHES x LENGTHS, which meet them all."""
    return dict.fromkeys(heuristic.choose(variant, b, 8, n, device) for b, n in itertools.product(BATCHES, LENGTHS))


def ptxas_report(arch, variant, launch, folder) -> tuple[int, int]:
    """(registers a thread, bytes spilled) as ptxas reports them."""
    arch = arch.removeprefix("sm_")
    words = [NVCC, f"-gencode=arch=compute_{arch},code=sm_{arch}", "-std=c++17", "-Xptxas", "-v", "-cubin"]
    words += [f"-D{name}={value}" for name, value in build.defines(variant, launch).items()]
    words += ["-o", str(folder / "kernel.cubin"), str(build.SOURCE.folder / build.SOURCE.files[0])]
    compiled = subprocess.run(words, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
    assert "warning" not in compiled.stderr, compiled.stderr
    registers = re.search(r"Used (\d+) registers", compiled.stderr)
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", compiled.stderr)
    return int(registers[1]), int(spilled[1]) + int(spilled[2])


def check(variant, launch, device, folder):
    registers, spilled = ptxas_report(device.arch, variant, launch, folder)
    shared_bytes = resources.shared_bytes(variant, launch)
    assert spilled == 0
    assert shared_bytes <= device.shared_per_cta
    assert launch.min_ctas * (shared_bytes + 1024) <= device.shared_per_sm
    assert launch.min_ctas * launch.warps * 32 * registers <= REGISTERS


@pytest.mark.skipif(NVCC is None, reason="needs nvcc; none here")
@pytest.mark.parametrize(
    "variant",
    [GPT_OSS, Variant(64, 8, True, torch.int8, True, True, channel_scales=True, query_tokens=4)],
    ids=["e4m3", "int8, 4 query tokens"],
)
def test_the_first_launch_compiles(variant, tmp_path):
    device = DEVICES["sm_90a"]
    check(variant, heuristic.choose(variant, 1, 8, 2048, device), device, tmp_path)


@pytest.mark.compile
@pytest.mark.skipif(NVCC is None, reason="needs nvcc; none here")
@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
@pytest.mark.parametrize("arch", DEVICES)
def test_every_launch_compiles(arch, variant, tmp_path):
    device = DEVICES[arch]
    for launch in launches(variant, device):
        check(variant, launch, device, tmp_path)


@pytest.mark.long
def test_no_launch_is_left_out():
    """BATCHES and LENGTHS against all batches up to 150 and 160 lengths, and of every variant and device some 700."""
    batches, few = (*range(1, 150), 280, 700), (*range(1, 18), 20, 24, 28, 33, 36, 40, 66, 67, 133, 280)
    lengths = [*range(16, 1024, 64), *range(1024, 20_000, 160), *range(20_000, 140_000, 5000)]
    coarse = [*range(48, 4096, 192), 6000, 9000, 14_000, 18_000, 40_000]
    assert left_out(GPT_OSS, DEVICES["sm_90a"], batches, lengths) == set()
    for variant, device in itertools.product(VARIANTS, DEVICES.values()):
        assert left_out(variant, device, few, coarse) == set(), (variant, device.arch)


def left_out(variant, device, batches, lengths):
    """The launches that are chosen for 8 KV heads but not among `launches`."""
    chosen = {heuristic.choose(variant, b, 8, n, device) for b, n in itertools.product(batches, lengths)}
    return chosen - set(launches(variant, device))


def test_the_sanitizers_see_every_launch_that_is_chosen():
    device, seen = DEVICES["sm_90a"], {False: set(), True: set()}
    for case in sanitize.CASES:
        if (case.kv_format, case.head_dim, case.query_tokens) == ("e4m3", 64, 1):
            table = cases.build(case)["block_table"]
            bound = table.shape[1] * case.page_size
            windowed = case.window_left >= 0
            bound = min(bound, case.window_left + 1) if windowed else bound
            seen[windowed].add(heuristic.choose(GPT_OSS, len(table), case.kv_heads, bound, device))
    assert set(launches(GPT_OSS, device)) <= seen[False]
    of_windows = {heuristic.choose(GPT_OSS, batch, 8, 128, device) for batch in BATCHES}
    assert of_windows <= seen[True]


@pytest.mark.parametrize("arch", DEVICES)
def test_clusters_and_workspace_fit_the_device(arch):
    device = DEVICES[arch]
    assert all(launch.cluster == 0 for launch in launches(GPT_OSS, device)) == (not device.clusters)
    for p, batch, kv_heads, length in itertools.product(VARIANTS, (1, 3, 33, 140, 700), (1, 2, 8, 80), LENGTHS):
        launch = heuristic.choose(p, batch, kv_heads, length, device)
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
