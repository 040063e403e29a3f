"""The JIT path of the patched package: module names and generated sources."""

from pathlib import Path

from kernels_tests.flashinfer_patches.conftest import run_script


def test_name_and_source_of_the_fp8_sink_module(version, patched):
    (module,) = run_script("sources_script.py", patched, "bfloat16:float8_e4m3fn")
    assert "attention_sink" in module["uri"] and "dtype_kv_e4m3" in module["uri"] and "dtype_q_bf16" in module["uri"]
    folder = Path(module["folder"])
    config = (folder / "batch_prefill_config.inc").read_text()
    assert folder.name == module["uri"] and "struct AttentionSink" in config
    assert "using DTypeKV = __nv_fp8_e4m3;" in config and "using DTypeQ = nv_bfloat16;" in config
    assert "double v_scale;" in config and "* get_v_scale(params)" in config and "params.sink[qo_head_idx]" in config
    assert "AttentionSink" in (folder / "batch_prefill_paged_kernel_mask_0.cu").read_text()
    # The release with a finite sentinel in math.cuh gets a larger sentinel for this module.
    finite = "constexpr float inf = 5e4;" in (patched / "flashinfer/data/include/flashinfer/math.cuh").read_text()
    assert finite == (version == "0.6.14")
    assert ("-DFLASHINFER_MASKED_LOGIT=0x1p96f" in module["flags"]) == finite


def test_every_patched_and_unpatched_module_has_a_unique_name(version, patched, pristine):
    pairs = ["bfloat16:float8_e4m3fn", "bfloat16:bfloat16", "float16:float8_e4m3fn"]
    names, stock = (
        [module["uri"] for module in run_script("sources_script.py", package, *pairs)]
        for package in (patched, pristine)
    )
    assert len({*names, *stock}) == 2 * len(pairs)
