"""Reading the log of vLLM on a CPU, and what our plugin logs there."""

import pytest

from kernels_tests.vllm_launch.server_logs import STOCK, log, without
from vllm_launch.resolved import Mismatch, mismatches, read

STATIC_SCALES = "ef979674eb664890f8253bb4c03a0b09f54f8d80fda4a7552e32d5d44a7b8b82"


def test_cpu_auto():
    resolved = read(log("cpu-0.32.0-auto"), "0.32.0")
    assert resolved.model_dump() == {
        "vllm_version": "0.32.0",
        "device": "cpu",
        "model_dtype": "bfloat16",
        "max_model_len": 4096,
        "attention_backends": ["CPU_ATTN"],
        "flash_attention_version": None,
        "flashinfer": [],
        "kv_cache_dtype": "auto",
        "kv_skip_layers": [],
        "kv_capacity_tokens": 671088,
        "kv_block_sizes": [128, 128],
        "moe_backend": "CPU",
        "cuda_graphs": "none",
        "cpu_cache_writer": False,
        "cpu_attention": None,
        **STOCK,
    }


def test_cpu_fp8():
    resolved = read(log("cpu-0.32.0-fp8"), "0.32.0")
    assert (resolved.kv_cache_dtype, resolved.kv_capacity_tokens, resolved.cpu_cache_writer) == ("fp8", 1342177, True)
    assert mismatches(resolved, ["CPU_ATTN"], "fp8_e4m3", []) == []
    assert not read(log("cpu-0.32.0-fp8-no-plugin"), "0.32.0").cpu_cache_writer


@pytest.mark.parametrize(("name", "attention"), [("fp8", "native"), ("fp8-widened", "widened"), ("auto", None)])
def test_the_kernel_that_reads_an_fp8_cache_on_a_cpu(name, attention):
    resolved = read(log(f"cpu-0.32.0-{name}"), "0.32.0")
    assert (resolved.cpu_attention, resolved.cpu_cache_writer) == (attention, attention is not None)
    assert mismatches(resolved, ["CPU_ATTN"], resolved.kv_cache_dtype, resolved.kv_skip_layers) == []


def test_an_fp8_cache_on_a_cpu_without_a_logged_reader_is_a_mismatch():
    text = without(log("cpu-0.32.0-fp8"), "attention reads the e4m3 cache")
    (difference,) = mismatches(read(text, "0.32.0"), ["CPU_ATTN"], "fp8", [])
    assert difference.setting == "CPU attention over the KV cache"


@pytest.mark.parametrize(
    ("name", "requested", "kv_format", "scales", "capacity"),
    [
        ("int8", "int8_per_token_head", "int8", None, 1038821),
        ("int8-static", "fp8", "int8-static", STATIC_SCALES, 1103764),
    ],
)
def test_int8_on_a_cpu_is_read_back(name, requested, kv_format, scales, capacity):
    """Recorded beside a BF16 cache of 551,882 tokens: 1.88 and 2.00 times as many."""
    resolved = read(log(f"cpu-0.32.0-{name}"), "0.32.0")
    assert (resolved.kv_format, resolved.kv_scales, resolved.kv_cache_dtype) == (kv_format, scales, requested)
    assert (resolved.cpu_attention, resolved.cpu_cache_writer) == ("widened", True)
    assert resolved.kv_capacity_tokens == capacity
    request = (["CPU_ATTN"], requested, [], "stock")
    assert mismatches(resolved, *request, scales, kv_format) == []
    for mismatch in ("e4m3", "int8" if kv_format == "int8-static" else "int8-static"):
        assert mismatches(resolved, *request, scales, mismatch) == [Mismatch("KV format", mismatch, kv_format)]
    (difference,) = mismatches(resolved, *request, "b" * 64, kv_format)
    assert difference.setting == "KV scales"


def test_a_kv_format_that_is_not_logged_is_a_mismatch():
    resolved = read(without(log("cpu-0.32.0-int8"), "KV cache writer rounds to"), "0.32.0")
    differences = mismatches(resolved, ["CPU_ATTN"], "int8_per_token_head", [], "stock", None, "int8")
    assert [difference.setting for difference in differences] == ["KV format", "CPU cache writer"]


def test_cpu_ignores_a_requested_backend():
    resolved = read(log("cpu-0.32.0-fp8-skip"), "0.32.0")
    assert resolved.kv_skip_layers == ["sliding_window"]
    assert resolved.kv_block_sizes == [128, 256]
    assert resolved.kv_capacity_tokens == 986895
    assert resolved.cuda_graphs == "none"
    assert mismatches(resolved, ["FLASHINFER"], "fp8", ["sliding_window"]) == [
        Mismatch("attention backend", "FLASHINFER", "CPU_ATTN")
    ]


def test_a_truncating_cache_writer_is_a_mismatch():
    resolved = read(log("cpu-0.32.0-fp8-no-plugin"), "0.32.0")
    settings = [difference.setting for difference in mismatches(resolved, ["CPU_ATTN"], "fp8", [])]
    assert settings == ["CPU cache writer", "CPU attention over the KV cache"]
