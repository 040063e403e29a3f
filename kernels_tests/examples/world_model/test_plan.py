"""Formats, windows, kernel and backend that follow from settings."""

import pytest
import torch
from world.config import Config
from world.plan import bf16_request, make_plan
from world.settings import BF16, from_values, request

CONFIG = Config()
CPU = torch.device("cpu")


def plan(**values):
    return make_plan(from_values(values), CONFIG, CPU)


@pytest.mark.parametrize(
    ("values", "k", "v", "v_scale"),
    [
        ({}, None, "e4m3", "none"),
        ({"k_fp8": True}, "e5m2", "e4m3", "none"),
        ({"k_fp8": True, "kv_storage": "i8_scale"}, "int8", "int8", "token_head"),
        ({"k_fp8": True, "k_fmt": "int8", "k_scale": "token_head"}, "int8", "e4m3", "none"),
        ({"v_scale": "ema"}, None, "e4m3", "ema"),
        ({"v_scale": "block"}, None, "mxfp8", "block"),
        ({"kv_bits": 4}, None, "mxfp4", "block"),
        ({"kv_bits": 4, "v_scale": "token_head"}, None, "int4", "token_head"),
        ({"fp8_kv": False}, None, None, "none"),
        ({"kv_storage": "bf16"}, None, None, "none"),
    ],
)
def test_formats_follow_from_storage_bits_and_scale(values, k, v, v_scale):
    chosen = plan(**values)
    assert (set(chosen.k_formats), set(chosen.v_formats), chosen.v_scale) == ({k}, {v}, v_scale)
    assert len(chosen.k_formats) == len(chosen.v_formats) == CONFIG.layers


def test_the_mixed_policy_stores_v_in_4_bits_in_late_layers():
    chosen = plan(kv_mixed=4)
    assert chosen.v_formats == ("e4m3",) * 12 + ("mxfp4",) * 4
    assert chosen.v_scale == ("none",) * 12 + ("block",) * 4
    with pytest.raises(ValueError, match="kv_mixed is 17; expected 0 to 16"):
        plan(kv_mixed=17)


def test_windows_are_global_at_every_fourth_layer():
    tokens = CONFIG.frame_tokens
    expected = (CONFIG.local_frames, CONFIG.local_frames, CONFIG.local_frames, CONFIG.global_frames) * 4
    assert plan().windows == tuple(tokens * frames for frames in expected)
    shorter = (2, 2, 2, CONFIG.global_frames) * 4
    assert plan(local_window=2).windows == tuple(tokens * frames for frames in shorter)


def test_defaults_give_way_on_a_cpu_with_a_notice():
    chosen = make_plan(request(None, {}), CONFIG, CPU)
    assert (chosen.mx_kernel, chosen.compiled, chosen.backend) == ("emulated", False, "reference")
    assert len(chosen.notices) == 2


def test_explicit_settings_do_not_give_way():
    chosen = plan(mxfp_kernel="auto", mxfp_enable=True)
    assert chosen.mx_kernel == "auto"
    with pytest.raises(ValueError, match="compile with mxfp_enable on a CPU"):
        plan(compile=True)
    assert plan(compile=True, mxfp_enable=False).compiled


@pytest.mark.parametrize(
    ("values", "backend"),
    [
        ({}, "flex"),
        ({"k_fp8": True, "k_scale": "token_head"}, "flex"),
        ({"kv_storage": "i8_scale"}, "triton"),
        ({"kv_bits": 4}, "triton"),
        ({"kv_mixed": 4}, "triton"),
        ({"kv_tail_only": True}, "reference"),
        ({"attn_sdpa_decode": True}, "sdpa"),
        ({"attn_backend": "reference"}, "reference"),
    ],
)
def test_the_backend_of_a_gpu_reads_the_scales(values, backend):
    requested = from_values({"mxfp_enable": False} | values)
    assert make_plan(requested, CONFIG, torch.device("cuda")).backend == backend


def test_bf16_request_keeps_compile_and_window():
    requested = from_values({"compile": False, "local_window": 2, "kv_bits": 4, "attn_sdpa_decode": True})
    baseline = bf16_request(requested)
    assert (baseline.settings.compile, baseline.settings.local_window) == (False, 2)
    assert (baseline.settings.mxfp_enable, baseline.settings.fp8_kv) == (BF16.mxfp_enable, BF16.fp8_kv)
    assert set(baseline.sources) == {"compile", "local_window"}
