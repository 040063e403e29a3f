"""Reading vLLM's log: recorded CPU and H200 logs, and GPU logs composed from vLLM's own format strings."""

import pytest
from pydantic import ValidationError

from kernels_tests.vllm_launch.server_logs import STOCK, log, replaced, without
from vllm_launch.resolved import Mismatch, Resolved, canonical_kv_dtype, mismatches, read


def test_settings_of_older_results_are_still_read():
    resolved = read(log("cpu-0.32.0-fp8"), "0.32.0")
    older = resolved.model_dump() | dict.fromkeys(Resolved.RETIRED, 1.0)
    assert Resolved.model_validate(older) == resolved
    for name in ("cpu_attention", *STOCK):
        del older[name]
    assert Resolved.model_validate(older).model_dump() == resolved.model_dump() | STOCK | {"cpu_attention": None}


def test_gpu_026_fp8():
    resolved = read(log("gpu-0.26.0-sm90-fp8"), "0.26.0")
    assert resolved.model_dump() == {
        "vllm_version": "0.26.0",
        "device": "cuda",
        "model_dtype": "bfloat16",
        "max_model_len": 131072,
        "attention_backends": ["FLASH_ATTN"],
        "flash_attention_version": 3,
        "flashinfer": [],
        "kv_cache_dtype": "fp8",
        "kv_skip_layers": [],
        "kv_capacity_tokens": 3404810,
        "kv_block_sizes": None,
        "moe_backend": "MARLIN",
        "cuda_graphs": "FULL_AND_PIECEWISE",
        "cpu_cache_writer": False,
        "cpu_attention": None,
        **STOCK,
    }
    assert mismatches(resolved, ["FLASH_ATTN"], "fp8", []) == []


def test_gpu_026_recorded_on_an_h200():
    """A complete log of a start; the other logs have only the lines that matter."""
    resolved = read(log("gpu-0.26.0-sm90-tiny-fp8-skip"), "0.26.0")
    assert (resolved.attention_backends, resolved.flash_attention_version) == (["FLASH_ATTN"], 3)
    assert resolved.kv_cache_dtype == "fp8"
    assert (resolved.kv_capacity_tokens, resolved.max_model_len) == (28887656, 2560)
    assert (resolved.moe_backend, resolved.cuda_graphs) == ("TRITON", "FULL_AND_PIECEWISE")
    assert mismatches(resolved, ["FLASH_ATTN"], "fp8", ["sliding_window"]) == []


def test_gpu_026_named_backend_and_eager():
    resolved = read(log("gpu-0.26.0-sm121-eager"), "0.26.0")
    assert (resolved.attention_backends, resolved.cuda_graphs) == (["TRITON_ATTN"], "none")


def test_gpu_033_flashinfer_with_skipped_layers():
    resolved = read(log("gpu-0.33.0-sm121-fp8-skip"), "0.33.0")
    assert resolved.attention_backends == ["FLASHINFER"]
    assert resolved.kv_skip_layers == ["sliding_window"]
    assert resolved.kv_block_sizes == [16, 32]
    assert (resolved.kv_capacity_tokens, resolved.max_model_len) == (2441216, 131072)
    assert resolved.flashinfer[1] == (
        "prefill=bfloat16, decode=bfloat16, decode_backend=xqa, kv_cache_dtype=float8_e4m3fn, arch=sm121"
    )
    assert resolved.cuda_graphs == "FULL_AND_PIECEWISE"


def test_gpu_033_custom_backend_with_reduced_graphs():
    resolved = read(log("gpu-0.33.0-sm90-custom"), "0.33.0+cu130")
    assert resolved.attention_backends == ["CUSTOM"]
    assert resolved.cuda_graphs == "PIECEWISE"
    assert resolved.vllm_version == "0.33.0"


def test_gpu_033_graphs_without_piecewise_capture():
    where = "(EngineCore pid=202) WARNING 11-21 12:00:09 [compilation.py:1473]"
    why = "the loaded model provides neither a compiled submodule nor breakable CUDA graphs."
    change = f"{where} Cudagraph mode X requires piecewise capture, but {why} Overriding to FULL_DECODE_ONLY."
    resolved = read(f"{log('gpu-0.33.0-sm121-fp8-skip')}{change}\n", "0.33.0")
    assert resolved.cuda_graphs == "FULL_DECODE_ONLY"


def test_skipped_capture_is_no_graphs():
    text = log("gpu-0.26.0-sm90-fp8")
    text = replaced(text, "Graph capturing finished in", "Skipping CUDA graph capture. To turn on")
    assert read(text, "0.26.0").cuda_graphs == "none"


def test_fallback_is_a_mismatch():
    old = "Using FLASH_ATTN attention backend out of potential backends: ['FLASH_ATTN', 'TRITON_ATTN']."
    new = "Using TRITON_ATTN attention backend out of potential backends: ['TRITON_ATTN']."
    text = without(replaced(log("gpu-0.26.0-sm90-fp8"), old, new), "Using FlashAttention version")
    differences = mismatches(read(text, "0.26.0"), ["FLASH_ATTN"], "fp8", [])
    assert differences == [Mismatch("attention backend", "FLASH_ATTN", "TRITON_ATTN")]
    assert str(differences[0]) == "attention backend: expected FLASH_ATTN, got TRITON_ATTN"


def test_fallback_of_a_single_layer_kind_is_a_mismatch():
    old, new = "Using AttentionBackendEnum.CUSTOM backend.", "Using AttentionBackendEnum.TRITON_ATTN backend."
    text = log("gpu-0.33.0-sm90-custom")
    last = text.rindex(old)
    resolved = read(text[:last] + replaced(text[last:], old, new), "0.33.0")
    differences = mismatches(resolved, ["CUSTOM"], "fp8", resolved.kv_skip_layers)
    assert differences == [Mismatch("attention backend", "CUSTOM", "CUSTOM, TRITON_ATTN")]


AUTO, FP8, E5M2 = "bfloat16 (auto)", "fp8_e4m3 (fp8)", "fp8_e5m2 (fp8_e5m2)"


@pytest.mark.parametrize(
    ("name", "requested", "expected"),
    [
        ("cpu-0.32.0-auto", "auto", []),
        ("cpu-0.32.0-auto", "bfloat16", []),
        ("cpu-0.32.0-auto", "fp8", [Mismatch("KV cache dtype", FP8, AUTO)]),
        ("cpu-0.32.0-fp8", "fp8", []),
        ("cpu-0.32.0-fp8", "auto", [Mismatch("KV cache dtype", AUTO, FP8)]),
        ("cpu-0.32.0-fp8", "fp8_e5m2", [Mismatch("KV cache dtype", E5M2, FP8)]),
    ],
)
def test_kv_dtypes(name, requested, expected):
    assert mismatches(read(log(name), "0.32.0"), ["CPU_ATTN"], requested, []) == expected


def test_skipped_layers_are_checked():
    resolved = read(log("cpu-0.32.0-fp8-skip"), "0.32.0")
    assert mismatches(resolved, ["CPU_ATTN"], "fp8", ["sliding_window"]) == []
    (difference,) = mismatches(resolved, ["CPU_ATTN"], "fp8", [])
    assert (difference.expected, difference.actual) == ("none", "sliding_window")
    plain = read(log("cpu-0.32.0-fp8"), "0.32.0")
    assert len(mismatches(plain, ["CPU_ATTN"], "fp8", ["sliding_window"])) == 1


def test_canonical_kv_dtype():
    assert canonical_kv_dtype("auto", "float16") == "float16"
    assert canonical_kv_dtype("fp8", "bfloat16") == "fp8_e4m3"
    assert canonical_kv_dtype("fp8_e5m2", "bfloat16") == "fp8_e5m2"


def test_expected_backends_must_not_be_empty():
    with pytest.raises(ValueError, match="expected_backends is empty"):
        mismatches(read(log("cpu-0.32.0-auto"), "0.32.0"), [], "auto", [])


@pytest.mark.parametrize(
    ("name", "version", "left_out", "named"),
    [
        ("cpu-0.32.0-auto", "0.32.0", "KV cache size", "KV cache capacity.*; the maximum model length"),
        ("cpu-0.32.0-auto", "0.32.0", "Initializing a V1", "one engine config line"),
        ("cpu-0.32.0-auto", "0.32.0", "non-default args", "server's arguments"),
        ("gpu-0.26.0-sm90-fp8", "0.26.0", "KV cache size", "KV cache capacity"),
        ("gpu-0.26.0-sm90-fp8", "0.26.0", "Maximum concurrency", "maximum model length"),
        ("gpu-0.26.0-sm90-fp8", "0.26.0", "potential backends", "the attention backend"),
        ("gpu-0.26.0-sm90-fp8", "0.26.0", "FlashAttention version", "FlashAttention version"),
        ("gpu-0.26.0-sm90-fp8", "0.26.0", "Graph capturing finished", r"CUDA graph capture \(mode FULL_AND_"),
        ("gpu-0.33.0-sm121-fp8-skip", "0.33.0", "resolved query dtypes", "FlashInfer's query dtypes"),
        ("gpu-0.33.0-sm90-custom", "0.33.0", "CUSTOM backend.", "the attention backend"),
    ],
)
def test_a_missing_setting_is_named(name, version, left_out, named):
    with pytest.raises(ValueError, match=named):
        read(without(log(name), left_out), version)


@pytest.mark.parametrize(
    ("old", "new"),
    [("dtype=torch.bfloat16, max", "max"), ("'cudagraph_mode'", "'x'"), ("device_config", "x")],
)
def test_a_strange_config_line_is_refused(old, new):
    with pytest.raises(ValueError, match="engine config line lacks"):
        read(replaced(log("cpu-0.32.0-auto"), old, new), "0.32.0")


def test_versions():
    text = log("cpu-0.32.0-auto")
    with pytest.raises(ValueError, match=r"expected the log of vLLM 0.33.0, got one of vLLM 0.32.0"):
        read(text, "0.33.0")
    with pytest.raises(ValueError, match=r"no rules for the log of vLLM 0.34.0"):
        read(text, "0.34.0")


def test_a_log_of_two_starts_is_refused():
    with pytest.raises(ValueError, match="got 2"):
        read(log("cpu-0.32.0-auto") + log("cpu-0.32.0-fp8"), "0.32.0")


def test_contradicting_capacities_are_refused():
    text = log("gpu-0.26.0-sm90-fp8")
    line = next(line for line in text.splitlines() if "KV cache size" in line)
    with pytest.raises(ValueError, match=r"KV cache capacity: 3,404,810 and 1,000"):
        read(f"{text}\n{replaced(line, '3,404,810', '1,000')}", "0.26.0")


def test_only_the_right_source_file_is_believed():
    prompt = "(APIServer pid=101) INFO 11-21 12:59:00 [logger.py:1] prompt: Using CPU_MLA backend."
    assert read(f"{log('cpu-0.32.0-auto')}{prompt}\n", "0.32.0").attention_backends == ["CPU_ATTN"]


def test_colours_and_debug_paths():
    text = replaced(log("gpu-0.26.0-sm90-fp8"), "[cuda.py:482]", "[platforms/cuda.py:482]")
    text = replaced(text, "INFO 11-21", "\x1b[32mINFO\x1b[0m \x1b[90m11-21")
    assert read(text, "0.26.0") == read(log("gpu-0.26.0-sm90-fp8"), "0.26.0")


def test_resolved_is_plain_and_frozen():
    resolved = read(log("cpu-0.32.0-auto"), "0.32.0")
    assert type(resolved).model_validate_json(resolved.model_dump_json()) == resolved
    with pytest.raises(ValidationError):
        resolved.kv_cache_dtype = "fp8"
    with pytest.raises(ValidationError):
        type(resolved)(**resolved.model_dump(), more=1)
