"""Arguments that a cache and `attend` refuse, one line each."""

import pytest
import torch

from kernels_tests.lowp.static_cache.frames import FRAME_TOKENS, frame, plain, quantized
from lowp.static_cache import attend
from lowp.static_cache.fused import ring_attention

NEGATIVE = torch.tensor([0.02, -1.0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: plain(windows=(32, 20)), ValueError, "layer 1: window 20 is not a multiple of the frame's 8 tokens"),
        (lambda: plain(windows=(32, 4)), ValueError, "layer 1: a frame of 8 tokens is longer than the ring of 4"),
        (lambda: plain(windows=(32,)), ValueError, "windows has 1 entries; expected one for each of 2 layers"),
        (lambda: plain(frame_tokens=0), ValueError, "frame_tokens is 0; expected 1 or more"),
        (lambda: plain(torch.float64), TypeError, "dtype is torch.float64; expected torch.bfloat16"),
        (lambda: plain(torch.int8), TypeError, "dtype is torch.int8; expected torch.bfloat16"),
        (lambda: quantized(kv_late_layers=3), ValueError, r"kv_late_layers is 3; expected 0 \(all\) to 2"),
        (lambda: quantized(k_format="int7"), ValueError, "k_format 'int7' is unknown; expected one of bf16"),
        (lambda: quantized(v_format=["e4m3"]), ValueError, "v_format has 1 entries; expected one for each of 2 layers"),
        (
            lambda: quantized(v_format="int8", v_scale="none"),
            NotImplementedError,
            r"int8 has no v_scale none; expected token_head, ema, a tensor \[heads\]",
        ),
        (lambda: quantized(v_scale="channel"), ValueError, "v_scale 'channel' is unknown; expected none, token_head"),
        (lambda: quantized(v_scale=torch.ones(3)), ValueError, r"v_scale is torch.float32 \(3,\); expected"),
        (lambda: quantized(k_format="int8", k_scale=NEGATIVE), ValueError, "k_scale has values that are not positive"),
        (lambda: quantized(v_percentile=0), ValueError, "v_percentile is 0; expected more than 0, at most 100"),
        (lambda: quantized(v_percentile=99, v_scale="none"), ValueError, "v_percentile 99 acts on scales token_head"),
        (
            lambda: quantized(k_format="mxfp8"),
            NotImplementedError,
            "mxfp8 has no k_scale token_head; expected block",
        ),
        (
            lambda: quantized(v_scale="block"),
            NotImplementedError,
            "e4m3 has no v_scale block; expected none, token_head, ema",
        ),
        (
            lambda: quantized(v_format="mxfp4", v_scale="block", head_dim=48),
            ValueError,
            "head_dim is 48; expected a multiple of a block's 32 values",
        ),
        (lambda: quantized(v_format="int4", head_dim=63), ValueError, "head_dim is 63; expected an even number"),
        (lambda: quantized(v_scale=["none"]), ValueError, "v_scale has 1 entries; expected one for each of 2 layers"),
        (lambda: quantized(tail_only=FRAME_TOKENS + 1), ValueError, "tail_only is 9; expected a positive multiple"),
    ],
)
def test_a_cache_is_refused(make, error, message):
    with pytest.raises(error, match=f"^{message}") as caught:
        make()
    assert "\n" not in str(caught.value)


def reshaped(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x[:, :, 1:], ValueError, r"k has shape \(2, 2, 7, 64\); expected \(2, 2, 8, 64\)"),
        (lambda x: x.bfloat16(), TypeError, "k has dtype torch.bfloat16; expected torch.float32"),
        (lambda x: x.to("meta"), ValueError, "k is on meta; expected cpu"),
        (reshaped, ValueError, "k has strides .*; expected contiguous"),
    ],
)
def test_a_frame_is_refused(change, error, message):
    cache = plain()
    q, k, v = frame(0)
    calls = (
        lambda: cache.update(change(k), v, 0),
        lambda: cache.get(0, change(k), v),
        lambda: attend(q, cache, 0, change(k), v),
    )
    for call in calls:
        with pytest.raises(error, match=message):
            call()
    assert cache.get_offset(0) == 0


def test_a_call_is_refused():
    q, k, v = frame(0)
    bf16 = frame(0, torch.bfloat16)
    cache = plain()
    for call in (
        cache.get,
        cache.get_offset,
        lambda layer: cache.update(k, v, layer),
        lambda layer: attend(q, cache, layer, k, v),
    ):
        with pytest.raises(ValueError, match="layer is 2; expected 0 to 1"):
            call(2)
    with pytest.raises(ValueError, match="one of new_k and new_v is None; expected both or neither"):
        cache.get(0, k)
    with pytest.raises(ValueError, match="backend 'sdpa' is unknown; expected one of reference, flex"):
        attend(q, cache, 0, k, v, "sdpa")
    with pytest.raises(NotImplementedError, match="flex has no V scales per slot; expected v_scale none or one fixed"):
        attend(q, quantized(v_scale="token_head"), 0, k, v, "flex")
    with pytest.raises(NotImplementedError, match="triton needs a GPU; got tensors on cpu"):
        attend(*bf16[:1], quantized(torch.bfloat16), 0, *bf16[1:], "triton")
    for k_format, scale in (("mxfp8", "block"), ("int4", torch.ones(2))):
        cache = quantized(k_format=k_format, k_scale=scale, v_scale="none")
        with pytest.raises(NotImplementedError, match=f"flex does not read {k_format}; expected 8 bits or more"):
            attend(q, cache, 0, k, v, "flex")


@pytest.mark.parametrize(
    ("shape", "window", "message"),
    [
        ((70_000, 1, 1, 32), 64, "triton takes up to 65535 sequences x heads and .*; got 70000 and 2240000"),
        ((1 << 13, 4, 512, 128), 512, r"triton takes .* 2\*\*31 - 1 partial outputs; got 32768 and 2147483648"),
    ],
)
def test_triton_refuses_shapes_over_its_indices(monkeypatch, shape, window, message):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    few = torch.zeros(1, 1, 1, 32)
    q = few[..., :1].expand(shape)
    with pytest.raises(NotImplementedError, match=f"^{message}$"):
        ring_attention(q, few, few, few, few, None, None, few, window, "bf16", "bf16", "none", "none")
