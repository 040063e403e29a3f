"""Compiled steps with the kernel of ours: no graph break, no recompilation, no growth; CUDA graphs on a GPU."""

import os

import pytest
import torch
from torch._dynamo.utils import counters

from kernels_tests.lowp.static_cache.frames import FRAME, FRAME_TOKENS, LAYERS, WINDOWS, quantized
from lowp.static_cache import attend
from lowp.static_cache.fused import choose_launch
from lowp.static_cache.ring import state

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
FRAMES = 4 if INTERPRETED else 40
H200 = (132, 227 << 10)
FORMATS = {"k_format": "int8", "v_format": "mxfp4", "v_scale": "block"}


def make_cache():
    return quantized(torch.bfloat16, device=DEVICE, **FORMATS)


def make_step(cache):
    """Return a step: the layers of a model without weights, keys marked by their position."""

    def step(x):
        position = cache.get_offset(0) + torch.arange(FRAME_TOKENS, device=DEVICE)
        for layer in LAYERS:
            k, v = x + position.to(x.dtype).cos()[:, None], x + layer
            x = attend(x, cache, layer, k, v, "triton")
            cache.update(k, v, layer)
        return x

    return step


def draw(number: int) -> torch.Tensor:
    return torch.randn(FRAME, generator=torch.Generator().manual_seed(number)).to(DEVICE, torch.bfloat16)


def run(cache, step, frames: int) -> list[torch.Tensor]:
    """Run two sampling steps for each frame, the second commits; return its outputs."""
    outputs = []
    for number in range(frames):
        cache.disable_cache_updates()
        x = step(draw(number))
        cache.enable_cache_updates()
        outputs.append(step(x).clone())
    return outputs


def check_equal(outputs, expected) -> None:
    for x, y in zip(outputs, expected, strict=True):
        assert torch.allclose(x.float(), y.float(), atol=5e-2)


@pytest.mark.parametrize(
    "compiler",
    [
        pytest.param("aot_eager", marks=() if INTERPRETED else pytest.mark.gpu),
        pytest.param("inductor", marks=pytest.mark.gpu),
    ],
)
def test_a_step_has_no_graph_break_and_two_graphs(compiler):
    cache, eager = make_cache(), make_cache()
    addresses = [x.data_ptr() for ring in cache.rings for x in state(ring)]
    step = torch.compile(make_step(cache), backend=compiler, fullgraph=True)
    check_equal(run(cache, step, FRAMES), run(eager, make_step(eager), FRAMES))
    assert counters["stats"]["unique_graphs"] == 2
    assert [x.data_ptr() for ring in cache.rings for x in state(ring)] == addresses


@pytest.mark.gpu
def test_a_thousand_frames_as_cuda_graphs():
    """Captured once for each kind of step; replays allocate nothing."""
    cache, eager = make_cache(), make_cache()
    step = make_step(cache)
    x = draw(0)
    replays = {}
    stream = torch.cuda.Stream()
    for updates in (False, True):
        cache.updates_enabled = updates
        with torch.cuda.stream(stream):
            step(x)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = step(x)
        replays[updates] = graph, out
    cache.reset()

    def replay(frame):
        graph, out = replays[cache.updates_enabled]
        x.copy_(frame)
        graph.replay()
        return out.clone()

    outputs = run(cache, replay, 8)
    allocated = torch.cuda.memory_allocated()
    check_equal(outputs, run(eager, make_step(eager), 8))
    del outputs
    for number in range(1000):
        replay(draw(number))
    assert torch.cuda.memory_allocated() <= allocated
    assert cache.stats()["layers"][0]["frames"] == 1008


@pytest.mark.gpu
def test_a_ring_that_fills_compiles_nothing():
    from lowp.static_cache import triton_kernel

    cache = make_cache()
    step = make_step(cache)
    step(draw(0))
    compiled = {device: len(entry[0]) for device, entry in triton_kernel.attend_split.device_caches.items()}
    for number in range(3 * WINDOWS[0] // FRAME_TOKENS):
        step(draw(number))
    assert compiled == {device: len(entry[0]) for device, entry in triton_kernel.attend_split.device_caches.items()}


@pytest.mark.parametrize("frame_tokens", [16, 64, 256])
@pytest.mark.parametrize("window", [16384, 65536, 131072])
def test_splits_fill_a_gpu_and_take_little_memory(frame_tokens, window):
    """24 heads on an H200; the splits' outputs in fp32 are under a tenth of a layer's BF16 cache."""
    heads, head_dim = 24, 64
    launch = choose_launch(heads, frame_tokens, window, *H200)
    programs = heads * -(-frame_tokens // launch.block_m) * launch.splits
    slots = 132 * {16: 3, 64: 2, 128: 1}[launch.block_m]
    assert programs / (-(-programs // slots) * slots) > 0.85, "the last wave is nearly full"
    assert launch.splits * heads * frame_tokens * (head_dim + 1) * 4 < 0.1 * heads * window * head_dim * 4


def test_short_windows_and_small_gpus():
    assert choose_launch(24, 16, 512, *H200).splits == 1
    assert choose_launch(24, 16, 65536, 132, 99 << 10).stages < choose_launch(24, 16, 65536, *H200).stages
