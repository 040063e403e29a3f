"""Compiled steps with the kernel of ours: no graph break, no recompilation, no growth; CUDA graphs on a GPU."""

import os

import pytest
import torch
from torch._dynamo.utils import counters

from kernels_tests.lowp.static_cache.frames import FRAME, FRAME_TOKENS, LAYERS, WINDOWS, quantized
from lowp.paged.tight import problems
from lowp.static_cache import attend, reference
from lowp.static_cache.fused import choose_launch
from lowp.static_cache.ring import state
from lowp.static_cache.store import as_bytes

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
FRAMES = 4 if INTERPRETED else 40
H200 = (132, 227 << 10)
FORMATS = {"k_format": "int8", "v_format": "mxfp4", "v_scale": "block"}


def make_cache():
    return quantized(torch.bfloat16, device=DEVICE, **FORMATS)


def keys_and_values(cache, x):
    """Return K and V of each layer, keys marked by their position. One sum each: compiled code rounds no other way."""
    position = cache.get_offset(0) + torch.arange(FRAME_TOKENS, device=DEVICE)
    return [(x + (position % 8).to(x.dtype)[:, None], x + layer) for layer in LAYERS]


def make_step(cache):
    """Return a step: the layers of a model without weights, which do not depend on each other."""

    def step(x):
        outputs = []
        for layer, (k, v) in enumerate(keys_and_values(cache, x)):
            outputs.append(attend(x, cache, layer, k, v, "triton"))
            cache.update(k, v, layer)
        return torch.stack(outputs)

    return step


def draw(number: int) -> torch.Tensor:
    return torch.randn(FRAME, generator=torch.Generator().manual_seed(number)).to(DEVICE, torch.bfloat16)


def check_frames(cache, step, frames: int) -> None:
    """Run two sampling steps for each frame, the second commits; compare it with fp32 attention over what is stored."""
    for number in range(frames):
        cache.disable_cache_updates()
        step(draw(number))
        x = draw(frames + number)
        expected = [
            reference.attention(x.float(), cache.rings[layer], k, v)
            for layer, (k, v) in enumerate(keys_and_values(cache, x))
        ]
        cache.enable_cache_updates()
        for out, exact in zip(step(x), expected, strict=True):
            assert not problems(*(x.transpose(1, 2).flatten(0, 1) for x in (out, exact.double())), rel_l2=5e-3)


def codes(cache) -> torch.Tensor:
    return torch.cat([as_bytes(store.codes).flatten() for ring in cache.rings for store in (ring.k, ring.v)])


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
    check_frames(cache, step, FRAMES)
    check_frames(eager, make_step(eager), FRAMES)
    assert counters["stats"]["unique_graphs"] == 2
    assert [x.data_ptr() for ring in cache.rings for x in state(ring)] == addresses
    assert (codes(cache) != codes(eager)).float().mean() < 0.01, "ties alone, as compiled code divides less exactly"


@pytest.mark.gpu
def test_a_thousand_frames_as_cuda_graphs():
    """Captured once for each kind of step; replays allocate nothing."""
    cache = make_cache()
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

    check_frames(cache, replay, 8)
    allocated = torch.cuda.memory_allocated()
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
