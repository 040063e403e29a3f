"""What preflight refuses of a decoder that is not stock: each problem with its remedy."""

import pytest

from kernels_tests.vllm_launch.machines import B200, H200, HOST, RTX
from kernels_tests.vllm_launch.refusals import refused
from vllm_launch import decoder_checks, preflight


def test_a_decoder_that_runs_here_has_no_problems(plan_with, scale_file, profile_file, tmp_path, monkeypatch):
    path = profile_file("extends: fp8\nkv_scales: scales.safetensors\n")
    monkeypatch.setattr(decoder_checks, "patch_state", lambda: "applied")
    for name, options in (
        *((path, {"version": version}) for version in ("0.26.0", "0.33.0")),
        *((path, {"machine": RTX, "certified": winner}) for winner in ("lowp", "flashinfer")),
        ("fp8-skip-sliding", {}),
        ("fp8", {"overrides": ["--kv-cache-dtype", "auto"]}),
        ("fp8-stock", {}),
        ("fp8", {"machine": RTX}),
    ):
        assert preflight.problems(plan_with(name, **options), tmp_path) == []


LOWP = "extends: fp8\ndecoder: lowp\n"


@pytest.mark.parametrize("machine", [RTX, B200])
def test_lowp_on_another_gpu_needs_a_certificate(plan_with, profile_file, tmp_path, machine):
    path = profile_file(LOWP)
    (problem,) = preflight.problems(plan_with(path, machine), tmp_path)
    assert problem.kind == "software" and machine.family in problem.message and "fp8-sinks certify" in problem.remedy
    for winner in ("lowp", "flashinfer", "stock"):
        assert preflight.problems(plan_with(path, machine, certified=winner), tmp_path) == []


def test_a_decoder_needs_a_supported_vllm(plan_with, tmp_path):
    (problem,) = preflight.problems(plan_with(version="0.34.1"), tmp_path)
    assert problem.kind == "software" and "0.34.1" in problem.message and "0.26" in problem.message


@pytest.mark.parametrize("config", [{"head_dim": 256}, {"num_attention_heads": 34}])
def test_a_decoder_needs_its_head_sizes(plan_with, model_folder, tmp_path, config):
    folder = model_folder(name="other", **config)
    (problem,) = preflight.problems(plan_with(folder=folder), tmp_path)
    assert problem.kind == "model" and "fp8-stock" in problem.remedy
    assert preflight.problems(plan_with("fp8-stock", folder=folder), tmp_path) == []


@pytest.mark.parametrize("dtype", ["fp8_e5m2", "int4_per_token_head", "nvfp4"])
def test_a_decoder_needs_a_cache_that_it_reads(plan_with, tmp_path, dtype):
    overrides = ["--kv-cache-dtype", dtype]
    (problem,) = preflight.problems(plan_with(overrides=overrides), tmp_path)
    assert problem.kind == "profile" and dtype in problem.message
    assert preflight.problems(plan_with("fp8-stock", overrides=overrides), tmp_path) == []


INT8 = "extends: int8\n"
STATIC = "extends: int8-static\nkv_scales: int8.safetensors\n"


@pytest.mark.parametrize("text", [INT8, STATIC])
def test_int8_runs_on_a_cpu_and_with_decoder_lowp(plan_with, profile_file, int8_scale_file, tmp_path, text):
    path = profile_file(text)
    for options in (
        {"machine": HOST, "version": "0.32.0"},
        *({"version": version} for version in ("0.26.0", "0.33.0")),
        {"machine": RTX, "certified": "lowp"},
    ):
        assert preflight.problems(plan_with(path, **options), tmp_path) == []


@pytest.mark.parametrize(
    ("key", "machine", "certified", "remedy"),
    [
        ("", RTX, None, "fp8-sinks certify"),
        ("", B200, "stock", "fp8-sinks certify"),
        ("", RTX, "flashinfer", "decoder: lowp"),
        ("decoder: stock", H200, None, "decoder: lowp"),
        ("decoder: flashinfer", H200, None, "decoder: lowp"),
    ],
)
@pytest.mark.parametrize("text", [INT8, STATIC])
def test_int8_on_a_gpu_needs_decoder_lowp(
    plan_with, profile_file, int8_scale_file, tmp_path, monkeypatch, text, key, machine, certified, remedy
):
    monkeypatch.setattr(decoder_checks, "patch_state", lambda: "applied")
    planned = plan_with(profile_file(f"{text}{key}\n"), machine, certified=certified)
    (problem,) = preflight.problems(planned, tmp_path)
    assert problem.kind == "profile" and "needs decoder lowp" in problem.message and remedy in problem.remedy


@pytest.mark.parametrize("machine", [HOST, H200])
def test_static_int8_needs_scales_for_int8(
    plan_with, profile_file, scale_file, int8_scale_file, model_folder, tmp_path, machine
):
    version = "0.32.0" if machine is HOST else "0.33.0"
    (problem,) = preflight.problems(plan_with("int8-static", machine, version), tmp_path)
    assert problem.kind == "scales" and "tiny_gpt_oss" in problem.message, "the shipped file is the tiny model's"
    path = profile_file("extends: int8-static\nkv_scales: null\n")
    (problem,) = preflight.problems(plan_with(path, machine, version), tmp_path)
    assert problem.kind == "profile" and "kv_scales" in problem.message and "--kv-format int8" in problem.remedy
    path = profile_file("extends: int8-static\nkv_scales: scales.safetensors\n")
    (problem,) = preflight.problems(plan_with(path, machine, version), tmp_path)
    assert problem.kind == "scales" and "e4m3" in problem.message and "--kv-format int8" in problem.remedy
    foreign = model_folder(name="other", rope_theta=7.0)
    (problem,) = preflight.problems(plan_with(profile_file(STATIC), machine, version, folder=foreign), tmp_path)
    assert problem.kind == "scales" and str(int8_scale_file.path) in problem.message


def test_scales_for_int8_are_refused_with_another_format(plan_with, profile_file, int8_scale_file, tmp_path):
    path = profile_file("extends: fp8\nkv_scales: int8.safetensors\n")
    (problem,) = preflight.problems(plan_with(path), tmp_path)
    assert problem.kind == "scales" and "int8" in problem.message
    for machine, version in ((HOST, "0.32.0"), (H200, "0.33.0")):
        planned = plan_with(profile_file(f"{INT8}kv_scales: int8.safetensors\n"), machine, version)
        (problem,) = preflight.problems(planned, tmp_path)
        assert problem.kind == "profile" and "int8_per_token_head has none" in problem.message


@pytest.mark.parametrize("dtype", ["auto", "fp8_e5m2", "int8_per_token_head"])
def test_kv_format_int8_takes_the_bytes_of_dtype_fp8(plan_with, dtype):
    problem = refused(plan_with, "int8-static", overrides=["--kv-cache-dtype", dtype])
    assert problem.kind == "profile" and dtype in problem.message


@pytest.mark.parametrize("state", ["clean", "partial", "edited", "not installed"])
def test_decoder_flashinfer_needs_a_patched_flashinfer(plan_with, profile_file, tmp_path, monkeypatch, state):
    monkeypatch.setattr(decoder_checks, "patch_state", lambda: state)
    (problem,) = preflight.problems(plan_with(profile_file("extends: fp8\ndecoder: flashinfer\n")), tmp_path)
    assert problem.kind == "software" and "make patch" in problem.remedy


@pytest.mark.parametrize(
    ("text", "machine", "words"),
    [
        ("extends: fp8-stock", H200, "does not read"),
        ("extends: fp8", RTX, "fp8-sinks certify"),
        ("extends: fp8", HOST, "a CPU has no other"),
        ("extends: baseline\ndecoder: lowp", H200, "dtype auto"),
    ],
)
def test_scales_that_nothing_would_read_are_refused(
    plan_with, profile_file, scale_file, tmp_path, text, machine, words
):
    version = "0.32.0" if machine is HOST else "0.33.0"
    planned = plan_with(profile_file(f"{text}\nkv_scales: scales.safetensors\n"), machine, version)
    (problem,) = preflight.problems(planned, tmp_path)
    assert problem.kind == "profile" and words in problem.message


def test_a_scale_file_that_does_not_load(plan_with, profile_file, scale_file, tmp_path):
    planned = plan_with(profile_file("extends: fp8\nkv_scales: scales.safetensors\n"))
    scale_file.path.write_bytes(b"")
    (problem,) = preflight.problems(planned, tmp_path)
    assert problem.kind == "scales" and str(scale_file.path) in problem.message
    scale_file.path.unlink()
    (problem,) = preflight.problems(planned, tmp_path)
    assert problem.kind == "file" and str(scale_file.path) in problem.message


def test_scales_of_another_model_are_refused(plan_with, profile_file, scale_file, model_folder, tmp_path):
    path = profile_file("extends: fp8\nkv_scales: scales.safetensors\n")
    for name, config in (("layers", {"num_hidden_layers": 2}), ("geometry alike", {"rope_theta": 7.0})):
        (problem,) = preflight.problems(plan_with(path, folder=model_folder(name=name, **config)), tmp_path)
        assert problem.kind == "scales" and str(scale_file.path) in problem.message


def test_every_problem_of_a_decoder_is_listed(plan_with, profile_file, model_folder, tmp_path):
    folder = model_folder(name="other", head_dim=256)
    path = profile_file("extends: fp8\ndecoder: lowp\nkv_scales: nowhere.safetensors\n")
    planned = plan_with(path, RTX, "0.34.0", folder=folder, overrides=["--kv-cache-dtype", "fp8_e5m2"])
    problems = preflight.problems(planned, tmp_path)
    assert [problem.kind for problem in problems] == ["software", "software", "model", "profile", "file"]
