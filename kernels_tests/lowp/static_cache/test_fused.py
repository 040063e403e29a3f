"""The kernel of ours against fp64 attention over a rolled cache of what each format keeps: on a GPU, or interpreted.

Triton's interpreter must be chosen before triton is imported: `test_fused_interpreted` runs this file under it.
"""

import os
from functools import partial

import pytest
import torch

from kernels_tests.lowp.static_cache.frames import FIXED_SCALE, FRAME_TOKENS, frame, quantized_as
from kernels_tests.lowp.static_cache.rolled import RolledCache, exact_attention, relative_error, rounded
from lowp.paged.tight import problems
from lowp.static_cache import attend, fused, ring, store
from lowp.static_cache.fused import Launch
from lowp.static_cache.slots import frame_slots

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [] if INTERPRETED else pytest.mark.gpu
DEVICE = "cpu" if INTERPRETED else "cuda"
MUTANT_BOUND = 1e-2
WINDOW = 8 * FRAME_TOKENS  # two tiles of slots
SINGLE_SPLIT, SPLITS = Launch(16, 32, 1, 4, 2), Launch(16, 32, 3, 4, 2)
# A frame fills a part of a large tile of slots, three frames one and a half.
FRAMES_OF_64 = {"frame_tokens": 64, "windows": (192,)}
LARGE = {16: Launch(16, 128, 1, 4, 3), 64: Launch(64, 128, 1, 4, 3), 128: Launch(128, 128, 1, 8, 3)}

STORAGES = {
    "bf16": (("bf16", "none"), ("bf16", "none")),
    "K bf16, V e4m3": (("bf16", "none"), ("e4m3", "none")),
    "K bf16, V int8 token": (("bf16", "none"), ("int8", "token_head")),
    "K e5m2 token, V e4m3 head": (("e5m2", "token_head"), ("e4m3", FIXED_SCALE)),
    "K e4m3 head, V e5m2 token": (("e4m3", FIXED_SCALE), ("e5m2", "token_head")),
    "K int8 token, V int8 token": (("int8", "token_head"), ("int8", "token_head")),
    "K int8 head, V bf16": (("int8", FIXED_SCALE), ("bf16", "none")),
    "K mxfp8, V mxfp4": (("mxfp8", "block"), ("mxfp4", "block")),
    "K e5m2 block, V mxfp8": (("e5m2", "block"), ("mxfp8", "block")),
    "K int4 block, V int4 token": (("int4", "block"), ("int4", "token_head")),
    "K mxfp4, V int4 head": (("mxfp4", "block"), ("int4", FIXED_SCALE * 10)),
}
INT8 = STORAGES["K int8 token, V int8 token"]


@pytest.fixture
def launch(monkeypatch):
    """Return a function that fixes the launch."""
    return lambda chosen: monkeypatch.setattr(fused, "choose_launch", lambda *_: chosen)


def outputs(storage, numbers=(0, 1, 5, 9), query_scale: float = 1.0, draw=frame, **changes):
    """Yield the output and the exact one of some frames in one layer: empty, part of a tile, more than one, full."""
    cache = quantized_as(*storage, torch.bfloat16, **{"layers": 1, "windows": (WINDOW,), "device": DEVICE} | changes)
    truth = RolledCache(cache.rings[0].window)
    for number in range(max(numbers) + 1):
        q, k, v = draw(number, torch.bfloat16)
        q = q * query_scale
        if number in numbers:
            out = attend(q.to(DEVICE), cache, 0, *_moved(k, v), "triton").cpu()
            yield out, exact_attention(q, *truth.concatenate(k.double(), v.double()))
        cache.update(*_moved(k, v), 0)
        truth.update(rounded(k, *storage[0]).double(), rounded(v, *storage[1]).double())


def _moved(*tensors):
    return [x.to(DEVICE) for x in tensors]


def check(storage, **changes) -> None:
    for out, exact in outputs(storage, **changes):
        assert not problems(*(x.transpose(1, 2).flatten(0, 1) for x in (out, exact)), rel_l2=5e-3)


def worst_error(storage, **changes) -> float:
    return max(relative_error(out, exact) for out, exact in outputs(storage, **changes))


@pytest.mark.parametrize("name", STORAGES)
def test_each_storage_passes_the_tight_test(name, launch):
    launch(SINGLE_SPLIT)
    check(STORAGES[name])


@pytest.mark.parametrize("name", ["bf16", "K e5m2 token, V e4m3 head", "K int8 token, V int8 token"])
def test_splits_merge(name, launch):
    """The first frames leave splits empty."""
    launch(SPLITS)
    check(STORAGES[name])


@pytest.mark.parametrize("chosen", [SINGLE_SPLIT, SPLITS])
def test_tokens_that_are_no_multiple_of_a_tile(chosen, launch):
    """20 tokens are two tiles of queries, 60 slots two of the history; both end within one."""
    launch(chosen)
    check(INT8, numbers=(0, 1, 3), draw=partial(frame, tokens=20), frame_tokens=20, windows=(60,))


@pytest.mark.parametrize("block_m", [64] if INTERPRETED else LARGE)
@pytest.mark.parametrize("name", ["K int8 token, V int8 token"] if INTERPRETED else STORAGES)
def test_tiles_of_a_large_gpu(name, block_m, launch):
    launch(LARGE[block_m])
    check(STORAGES[name], numbers=(1, 3), draw=partial(frame, tokens=64), **FRAMES_OF_64)


@pytest.mark.parametrize("head_dim", [32, 128])
@pytest.mark.parametrize("name", ["K int8 token, V int8 token", "K mxfp8, V mxfp4", "K int4 block, V int4 token"])
def test_other_heads(name, head_dim, launch):
    launch(LARGE[64 if INTERPRETED else 16])
    draw = partial(frame, tokens=64, head_dim=head_dim)
    check(STORAGES[name], numbers=(1, 3), draw=draw, head_dim=head_dim, **FRAMES_OF_64)


def test_short_tiles_of_4_bits_are_refused(launch):
    """Triton 3.6 adds some of 16 slots twice and others not at all."""
    launch(Launch(16, 16, 1, 4, 2))
    with pytest.raises(Exception) as refusal:  # the compiler's error, whose cause has the message; or the interpreter's
        check(STORAGES["K mxfp8, V mxfp4"])
    assert "inner axes of 32 or more" in f"{refusal.value} {refusal.value.__cause__}"


@pytest.mark.parametrize("query_scale", [1e-30, 1e-4, 30.0])
@pytest.mark.parametrize("name", ["K e4m3 head, V e5m2 token", "K bf16, V int8 token"])
def test_queries_of_any_magnitude(name, query_scale, launch):
    """Products in FP16 scale the queries into its range."""
    launch(SINGLE_SPLIT)
    check(STORAGES[name], numbers=(1, 5), query_scale=query_scale)


def test_scales_of_any_magnitude(launch):
    """V's scales differ by 10^9 from token to token."""

    def draw(number, dtype):
        q, k, v = frame(number, dtype)
        v = v * 10.0 ** (torch.arange(FRAME_TOKENS) % 2 * 9 - 6)[:, None].to(dtype)
        return q, k, v

    launch(SINGLE_SPLIT)
    check((("bf16", "none"), ("e4m3", "token_head")), draw=draw)


@pytest.mark.parametrize("name", ["K e5m2 token, V e4m3 head", "K int8 token, V int8 token", "K mxfp8, V mxfp4"])
def test_unwritten_slots_change_nothing(name, launch, monkeypatch):
    """Codes are the largest finite ones, or NaN where the format has it, and scales too."""
    make_store = store.make_store

    def filled(*arguments):
        allocated = make_store(*arguments)
        store.as_bytes(allocated.codes).fill_(0x7F)
        if allocated.scale_per_slot:
            store.as_bytes(allocated.scale).fill_(250 if allocated.scaling == "block" else 1e30)
        return allocated

    monkeypatch.setattr(ring, "make_store", filled)
    launch(SINGLE_SPLIT)
    check(STORAGES[name], numbers=(0, 1, 2))


def test_a_frame_written_to_the_wrong_slots_fails(launch, monkeypatch):
    def shifted(end, frame_tokens, window):
        return (frame_slots(end, frame_tokens, window) + frame_tokens) % window

    launch(SINGLE_SPLIT)
    monkeypatch.setattr(ring, "frame_slots", shifted)
    assert worst_error(INT8, numbers=(1,)) > MUTANT_BOUND


if INTERPRETED:  # the last test stands for a GPU's rounding
    from kernels_tests.lowp.static_cache.mutants import MUTANTS, PROBABILITIES_IN_BF16, mutated

    @pytest.mark.parametrize("mutant", MUTANTS)
    def test_a_mutant_fails(mutant, launch, monkeypatch, tmp_path):
        *replacement, storage = MUTANTS[mutant]
        launch(SINGLE_SPLIT)
        check(STORAGES[storage], numbers=(1, 5))
        monkeypatch.setattr("lowp.static_cache.triton_kernel", mutated(*replacement, tmp_path))
        assert worst_error(STORAGES[storage], numbers=(1, 5)) > MUTANT_BOUND

    @pytest.mark.parametrize("name", STORAGES)
    def test_probabilities_rounded_as_on_a_gpu(name, launch, monkeypatch, tmp_path):
        """Every other operand is exact in BF16 and FP16: codes, and codes times powers of two."""
        launch(SINGLE_SPLIT)
        monkeypatch.setattr("lowp.static_cache.triton_kernel", mutated(*PROBABILITIES_IN_BF16, tmp_path))
        check(STORAGES[name])


def test_a_call_is_refused(launch):
    q, k, v = _moved(*frame(0))
    with pytest.raises(NotImplementedError, match=r"triton computes in torch\.bfloat16; got a cache of torch\.float32"):
        attend(q, quantized_as(*INT8, device=DEVICE), 0, k, v, "triton")
    cache = quantized_as(*INT8, torch.bfloat16, device=DEVICE, head_dim=48)
    q = torch.zeros(cache.frame_shape, dtype=torch.bfloat16, device=DEVICE)
    with pytest.raises(NotImplementedError, match="triton has no head_dim 48; expected one of 32, 64, 128"):
        attend(q, cache, 0, q, q, "triton")
