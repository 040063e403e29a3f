"""The JIT path of the patched package: module names and generated sources say what will be compiled."""

from pathlib import Path

from kernels_tests.flashinfer_patches.conftest import run_script


def test_name_and_source_of_the_fp8_sink_module(version, patched):
    (made,) = run_script("sources_script.py", patched, "bfloat16:float8_e4m3fn")
    assert "attention_sink" in made["uri"] and "dtype_kv_e4m3" in made["uri"] and "dtype_q_bf16" in made["uri"]
    folder = Path(made["folder"])
    config = (folder / "batch_prefill_config.inc").read_text()
    assert folder.name == made["uri"] and "struct AttentionSink" in config
    assert "using DTypeKV = __nv_fp8_e4m3;" in config and "using DTypeQ = nv_bfloat16;" in config
    assert "double v_scale;" in config and "* get_v_scale(params)" in config and "params.sink[qo_head_idx]" in config
    assert "AttentionSink" in (folder / "batch_prefill_paged_kernel_mask_0.cu").read_text()
    # The release whose math.cuh still has a finite sentinel gets a larger one for this module.
    finite = "constexpr float inf = 5e4;" in (patched / "flashinfer/data/include/flashinfer/math.cuh").read_text()
    assert finite == (version == "0.6.14")
    assert ("-DFLASHINFER_MASKED_LOGIT=0x1p96f" in made["flags"]) == finite


def test_no_two_modules_share_a_name_or_meet_an_unpatched_one(version, patched, pristine):
    pairs = ["bfloat16:float8_e4m3fn", "bfloat16:bfloat16", "float16:float8_e4m3fn"]
    names, stock = (
        [made["uri"] for made in run_script("sources_script.py", package, *pairs)] for package in (patched, pristine)
    )
    assert len({*names, *stock}) == 2 * len(pairs)
