"""plan() and run() of the patched wrappers: what they accept, refuse and pass to the kernel (guards_script)."""

import pytest

from kernels_tests.flashinfer_patches.conftest import run_script

KINDS = ["decode", "prefill"]


@pytest.fixture(scope="session")
def results(patched) -> dict:
    """The output of guards_script: name -> [error type or "ok", message], and the kernel's arguments."""
    return run_script("guards_script.py", patched)


@pytest.mark.parametrize("kind", KINDS)
def test_messages_for_unsupported_types(results, kind):
    for dtype in ("float8_e4m3fn", "float8_e5m2", "float32"):
        message = f"Attention sinks require BF16/FP16 query, got torch.{dtype}."
        assert results[f"{kind}: query torch.{dtype}"] == ["NotImplementedError", message]
    for dtype in ("float8_e5m2", "float32", "uint8", "int8", "float8_e4m3fnuz", "float8_e5m2fnuz"):
        message = f"Attention sinks support BF16 or FP8 E4M3 KV cache, got torch.{dtype}."
        assert results[f"{kind}: cache torch.{dtype}"] == ["NotImplementedError", message]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("query", ["bfloat16", "float16"])
def test_a_16_bit_cache_must_have_the_querys_type(results, kind, query):
    mismatched = {"bfloat16": "float16", "float16": "bfloat16"}[query]
    error, message = results[f"{kind}: torch.{query} and torch.{mismatched}"]
    assert error == "NotImplementedError" and "reads a 16-bit KV cache as the query's type" in message
    for cache in (query, "float8_e4m3fn"):
        assert results[f"{kind}: torch.{query} and torch.{cache}"] == ["ok", ""]
    assert results[f"sink wrapper: torch.{query} and torch.{mismatched}"] == [error, message]


PLANS = {
    "fa3": "backend fa2 or auto, got fa3",
    "trtllm-gen": "backend fa2 or auto, got trtllm-gen",
    "jit_args": "jit_args",
    "output": "BF16/FP16 output, got torch.float8_e4m3fn",
    "soft cap": "logits_soft_cap=30.0",
    "rope": "pos_encoding_mode=ROPE_LLAMA",
    "alibi": "pos_encoding_mode=ALIBI",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", PLANS)
def test_plans_that_the_sink_kernel_does_not_support(results, kind, case):
    error, message = results[f"{kind}: {case}"]
    assert error == "NotImplementedError" and PLANS[case] in message


def test_plans_of_a_single_wrapper(results):
    assert "use_tensor_cores=True" in results["decode: CUDA cores"][1]
    for case in ("mask", "packed mask", "mask of a graph"):
        assert results[f"prefill: {case}"] == [
            "NotImplementedError",
            "Attention sinks are not supported with a custom mask.",
        ]
    assert "multi-item scoring" in results["prefill: scoring"][1]
    assert "use_fp16_qk_reduction" in results["prefill: fp16 reduction"][1]
    for case in ("soft cap", "rope"):
        assert results[f"fast plan: {case}"][0] == "NotImplementedError"


def test_several_queries_a_request_are_computed_or_refused(version, results):
    if version == "0.6.14":  # its fa2 decode computes the first query alone
        assert results["decode: three queries"][0] == "NotImplementedError"
        assert "q_len_per_req=3" in results["decode: three queries"][1]
        assert results["decode: rows"][0] == "ValueError" and "query rows (one a request)" in results["decode: rows"][1]
    else:
        assert results["decode: three queries"] == ["ok", ""]


@pytest.mark.parametrize("kind", KINDS)
def test_auto_fa2_and_windows_are_accepted(results, kind):
    for case in ("fa2", "window"):
        assert results[f"{kind}: {case}"] == ["ok", ""]


RUNS = {
    "no sinks": "requires sinks=",
    "shape": "Invalid shape of sinks",
    "two dimensions": "Invalid shape of sinks",
    "dtype": "expected torch.float32, got torch.bfloat16",
    "device": "Invalid device of sinks",
    "strided": "contiguous",
    "positional": "by keyword",
    "fa2 without use_sinks": "is ignored by this plan (backend fa2)",
    "fa3 without use_sinks": "is ignored by this plan (backend fa3)",
    "keyword with jit_args": "jit_args",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", RUNS)
def test_runs_that_would_drop_or_misread_the_sinks(results, kind, case):
    error, message = results[f"{kind}: {case}"]
    assert error == "ValueError" and RUNS[case] in message


def test_a_cuda_core_plan_refuses_sinks(results):
    assert results["decode: CUDA-core run"][0] == "ValueError"


@pytest.mark.parametrize("kind", KINDS)
def test_scales_reach_the_kernel(results, kind):
    # k_scale 0.5 and q_scale 3 in sm_scale 1/8; v_scale 2 to the kernel, and no second pass over the output of ones.
    same_sinks, sm_scale, v_scale, untouched, uri, backend = results[f"{kind}: kernel arguments"]
    assert (same_sinks, sm_scale, v_scale, untouched) == (True, 0.125 * 0.5 * 3, 2.0, True)
    assert "attention_sink" in uri and "e4m3" in uri and backend == "fa2"
    for scale in ("k_scale", "v_scale"):
        assert results[f"{kind}: {scale} tensor"][0] == "TypeError"


def test_ragged_prefill_refuses_stashed_sinks(version, results):
    if version == "0.6.14":
        pytest.skip("0.6.14's ragged prefill takes no sinks")
    assert results["ragged: stashed sinks"][0] == "ValueError"


def test_the_sink_wrapper_names_its_modules(results):
    names = results["sink wrapper: names"]
    assert len(set(names)) == len(names) == 9
    assert all("attention_sink" in name for name in names)


def test_the_kernel_is_logged_once_for_each_pair_of_types(results):
    lines = results["log"]
    assert "Attention sink kernel: kv_dtype=torch.float8_e4m3fn, q_dtype=torch.bfloat16" in lines
    assert len(set(lines)) == len(lines) == 4
