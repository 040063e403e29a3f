"""Compiled steps: no graph break, two graphs (updates enabled or not), and nothing that grows over the frames."""

import gc
import re

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from kernels_tests.lowp.static_cache.frames import FRAME, FRAME_TOKENS, LAYERS, plain, quantized, quantized_as
from kernels_tests.lowp.static_cache.rolled import STORAGES
from lowp.static_cache import attend
from lowp.static_cache.ring import state

COMPARED = 6  # frames
CASES = {
    "plain, flex": (plain, "flex"),
    "K int8, V int8, flex": (lambda: quantized_as(*STORAGES["K int8 token, V int8 head"][:2]), "flex"),
    "K int8, V int8, reference": (lambda: quantized(k_format="int8", v_format="int8", v_percentile=99.0), "reference"),
    "K mxfp8, V mxfp4, reference": (
        lambda: quantized(k_format="mxfp8", k_scale="block", v_format="mxfp4", v_scale="block"),
        "reference",
    ),
    "tail, ema, reference": (lambda: quantized(v_scale="ema", tail_only=2 * FRAME_TOKENS, timed=True), "reference"),
}


def make_step(cache, backend: str):
    """Return a step: the layers of a model without weights, keys marked by their position."""

    def step(x):
        position = cache.get_offset(0) + torch.arange(FRAME_TOKENS)
        for layer in LAYERS:
            k, v = x + position.to(x.dtype).cos()[:, None], x + layer
            x = attend(x, cache, layer, k, v, backend)
            cache.get(layer, k, v)
            cache.update(k, v, layer)
        return x

    return step


def run_frames(cache, step, start: int, stop: int) -> list[torch.Tensor]:
    """Run two sampling steps for each frame, the second commits; return its first outputs."""
    outputs = []
    for number in range(start, stop):
        x = torch.randn(FRAME, generator=torch.Generator().manual_seed(number))
        cache.disable_cache_updates()
        x = step(x)
        cache.enable_cache_updates()
        out = step(x)
        if number < COMPARED:
            outputs.append(out)
    return outputs


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())


def check_frames(name: str, compiler: str, frames: int, atol: float) -> None:
    make, backend = CASES[name]
    cache, eager_cache = make(), make()
    addresses = [x.data_ptr() for ring in cache.rings for x in state(ring)]
    step = torch.compile(make_step(cache, backend), backend=compiler, fullgraph=True)
    outputs = run_frames(cache, step, 0, 20)
    tensors = live_tensors()
    run_frames(cache, step, 20, frames)
    assert live_tensors() <= tensors
    assert counters["stats"]["unique_graphs"] == 2
    assert [x.data_ptr() for ring in cache.rings for x in state(ring)] == addresses
    assert [layer["frames"] for layer in cache.stats()["layers"]] == [frames] * len(LAYERS)
    eager = run_frames(eager_cache, make_step(eager_cache, backend), 0, COMPARED)
    assert all(torch.allclose(a, b, atol=atol) for a, b in zip(outputs, eager, strict=True))


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("plain, flex", 60),
        ("K int8, V int8, flex", 40),
        ("K int8, V int8, reference", 1000),
        ("K mxfp8, V mxfp4, reference", 40),
        ("tail, ema, reference", 300),
    ],
)
def test_compiled_step_equals_eager_without_recompiles(name, frames):
    check_frames(name, "aot_eager", frames, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["plain, flex", "K int8, V int8, reference", "K mxfp8, V mxfp4, reference", "tail, ema, reference"]
)
def test_a_thousand_frames_of_generated_code(name):
    """Not flex over stored codes: torch compiles mixed dtypes on GPU alone. A rounding may differ by a step of int8."""
    check_frames(name, "inductor", 1000, atol=5e-2)


@pytest.mark.long
@pytest.mark.parametrize("updates", [True, False])
@pytest.mark.parametrize("name", ["plain, flex", "K int8, V int8, reference"])
def test_generated_code_copies_no_ring(name, updates):
    """Writes to the tail and to the ring are in place: no buffer has a store's slots and dtype."""
    make, backend = CASES[name]
    cache = make()
    cache.updates_enabled = updates
    store = cache.rings[0].k

    def step(x):
        for layer in LAYERS:
            x = attend(x, cache, layer, x, x, backend)
            cache.update(x, x, layer)
        return x

    _, code = run_and_get_code(torch.compile(step, fullgraph=True), torch.randn(FRAME))
    buffers = re.findall(r"= empty_strided_cpu\(\(([\d, ]*)\), .*, (torch\.\w+)\)", "\n".join(code))
    shapes = [(tuple(int(axis) for axis in re.findall(r"\d+", shape)), dtype) for shape, dtype in buffers]
    assert shapes, "the pattern finds buffers"
    assert (tuple(store.codes.shape), str(store.codes.dtype)) not in shapes
    assert "torch.uint8" not in {dtype for _, dtype in shapes}
