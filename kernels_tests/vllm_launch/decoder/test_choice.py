"""Which decoder a server gets, and why, on simulated machines; the plan that follows from it."""

import json
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
from click.testing import CliRunner

from flashinfer_patches.errors import Problem
from fp8_sinks.cli import main
from kernels_tests.processes import free_port
from kernels_tests.vllm_launch.certificates import certified
from kernels_tests.vllm_launch.machines import ADA, B200, H200, HOST, RTX, about, on_cpu, on_gpu
from kernels_tests.vllm_launch.refusals import refused
from vllm_launch import guard, plan, profile
from vllm_launch.decoder import choice, contract

VARIABLES = {"FP8_SINKS_DECODER", "FP8_SINKS_KV_FORMAT", "FP8_SINKS_KV_SCALES", "FP8_SINKS_RECORD"}


@pytest.mark.parametrize(
    ("name", "machine", "certified", "expected"),
    [
        *((name, HOST, None, "stock") for name in profile.names()),
        *((name, HOST, "lowp", "stock") for name in profile.names()),
        ("baseline", H200, "lowp", "stock"),
        ("fp8", H200, None, "lowp"),
        ("fp8", H200, "flashinfer", "lowp"),
        ("fp8-skip-sliding", H200, None, "lowp"),
        ("bf16-lowp", H200, None, "lowp"),
        ("bf16-lowp", RTX, None, "stock"),
        ("fp8-stock", H200, "lowp", "stock"),
        *(("fp8", machine, None, "stock") for machine in (RTX, B200)),
        *(("fp8", RTX, winner, winner) for winner in ("lowp", "flashinfer", "stock")),
        ("fp8-skip-sliding", RTX, "lowp", "lowp"),
        ("fp8", ADA, "lowp", "lowp"),
        ("fp8-stock", RTX, "lowp", "stock"),
        *((name, H200, None, "lowp") for name in ("int8", "int8-static")),
        *((name, RTX, None, "stock") for name in ("int8", "int8-static")),
    ],
)
def test_the_decoder_of_the_shipped_profiles(plan_with, name, machine, certified, expected):
    version = "0.32.0" if machine is HOST else "0.33.0"
    planned = plan_with(name, machine, version, certified)
    assert planned.decoder == expected and planned.decoder_reason
    assert (planned.expected_backends == ["CUSTOM"]) == (expected != "stock")
    assert planned.arguments.get("attention-backend") == (None if expected == "stock" else "CUSTOM")
    variables = set() if expected == "stock" else {"FP8_SINKS_DECODER", "FP8_SINKS_RECORD"}
    if name == "int8-static" and (machine is HOST or expected != "stock"):
        variables |= {"FP8_SINKS_KV_FORMAT", "FP8_SINKS_KV_SCALES"}
    assert VARIABLES & planned.environment.keys() == variables


@pytest.mark.parametrize(
    ("name", "dtype", "on_cpu", "on_gpu", "by_stock"),
    [
        ("baseline", "auto", None, None, None),
        ("fp8", "fp8", "e4m3", "e4m3", None),
        ("fp8", "fp8_e4m3", "e4m3", "e4m3", None),
        ("fp8", "fp8_e5m2", "e5m2", None, None),
        ("fp8", "bfloat16", None, "bf16", None),
        ("int8", "int8_per_token_head", "int8", "int8", "int8"),
        ("int8-static", "fp8", "int8-static", "int8-static", "int8-static"),
    ],
)
def test_the_kv_format_that_the_plugin_is_to_record(plan_with, name, dtype, on_cpu, on_gpu, by_stock):
    machines = (HOST, "0.32.0"), (H200, "0.33.0"), (RTX, "0.33.0")
    formats = [plan_with(name, *machine, overrides=["--kv-cache-dtype", dtype]).kv_format for machine in machines]
    assert formats == [on_cpu, on_gpu, by_stock]


def test_a_family_without_a_certificate_and_a_backend_is_refused(plan_with):
    assert "sm89" in refused(plan_with, "fp8", ADA).message


@pytest.mark.parametrize(
    ("key", "machine", "expected"),
    [
        ("", H200, "stock"),
        ("decoder: lowp", H200, "lowp"),
        ("decoder: flashinfer", RTX, "flashinfer"),
        ("decoder: lowp", HOST, "stock"),
        ("decoder: certified", H200, "flashinfer"),
        ("decoder: {sm12x: lowp}", H200, "stock"),
        ("decoder: {sm12x: lowp}", RTX, "lowp"),
        ("decoder: {sm12x: lowp, other: flashinfer}", H200, "flashinfer"),
    ],
)
def test_a_users_decoder_by_family(plan_with, profile_file, key, machine, expected):
    path = profile_file(f"extends: baseline\nvllm: {{kv-cache-dtype: fp8}}\n{key}\n")
    version = "0.32.0" if machine is HOST else "0.33.0"
    assert plan_with(path, machine, version, "flashinfer").decoder == expected


def test_a_family_is_added_to_those_of_the_profile_that_is_extended(profile_file):
    loaded = profile.load(profile_file("extends: fp8\ndecoder: {sm12x: lowp}\n"))
    requests = {family: loaded.requested_decoder(family) for family in ("sm90", "sm12x", "sm100", "cpu")}
    assert requests == {"sm90": "lowp", "sm12x": "lowp", "sm100": "certified", "cpu": "stock"}


@pytest.mark.parametrize("value", ["fast", "[lowp]", "{sm90: fast}", "{cpu: lowp}", "{cpu: stock}", "null", "true"])
def test_a_decoder_that_is_none(profile_file, value):
    problem = refused(profile.load, profile_file(f"extends: baseline\ndecoder: {value}\n"))
    assert problem.kind == "profile" and "decoder" in problem.message


def test_a_choice_says_why():
    choices = {
        (name, family, certified): choice.choose(profile.load(name), family, lambda certified=certified: certified)
        for name, family, certified in (("fp8", "sm12x", None), ("fp8", "sm12x", "lowp"), ("fp8", "sm90", None))
    }
    reasons = [choice.reason for choice in choices.values()]
    assert len({*reasons}) == 3 and "fp8-sinks certify" in reasons[0] and "certificate" in reasons[1]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (on_gpu(), "lowp"),
        (on_gpu(RTX, "0.33", "12.0"), "stock"),
        (on_gpu(RTX, "0.33", "12.0", certificate=certified("flashinfer")), "flashinfer"),
        (on_cpu(), "stock"),
    ],
)
def test_the_doctor_names_the_decoder_of_fp8_in_a_line(facts, expected):
    (finding,) = about(facts, "decoder")
    assert finding.status == "ok" and finding.value["decoder"] == expected
    assert finding.value["reason"] in finding.message and "\n" not in finding.message
    if expected == "stock" and facts.gpu:
        assert "fp8-sinks certify" in finding.message


def test_a_plan_names_its_record_by_its_start_inside_the_run_folder(plan_with):
    first, second = plan_with(), plan_with()
    records = [Path(planned.environment[contract.RECORD]) for planned in (first, second)]
    assert records[0] != records[1] and not any(record.is_absolute() or len(record.parts) > 1 for record in records)
    assert records[0].name == f"{first.nonce}.json"


@pytest.mark.parametrize("backend", ["TRITON_ATTN", "FLASH_ATTN", "CUSTOM", "custom"])
@pytest.mark.parametrize("name", ["fp8", "fp8-stock"])
def test_only_a_decoder_selects_our_backend(plan_with, name, backend):
    overrides = ["--attention-backend", backend]
    if name == "fp8-stock" and backend.upper() != "CUSTOM":
        assert plan_with(name, overrides=overrides).arguments["attention-backend"] == backend
    else:
        problem = refused(plan_with, name, overrides=overrides)
        assert problem.kind == "profile" and backend in problem.message


def test_a_shortened_attention_backend_does_not_escape_the_plan(plan_with):
    assert refused(plan_with, "fp8", overrides=["--attention-b", "TRITON_ATTN"]).kind == "profile"


def test_inherited_variables_do_not_name_the_decoder(plan_with, monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "inherited")
    assert not VARIABLES & plan.child_environment(plan_with("fp8-stock")).keys()
    environment = plan.child_environment(plan_with("fp8"))
    assert environment[contract.DECODER] == "lowp" and contract.KV_SCALES not in environment
    assert "inherited" not in environment.values()


@pytest.mark.parametrize("name", sorted(VARIABLES))
def test_a_profile_does_not_set_our_variables(plan_with, profile_file, name):
    assert {*choice.VARIABLES} == VARIABLES
    path = profile_file(f"extends: fp8\ndevices: {{gpu: {{env: {{{name}: lowp}}}}}}\n")
    problem = refused(plan_with, path)
    assert problem.kind == "profile" and f"{name} is set by the launcher" in problem.message
    assert "`decoder`" in problem.remedy and "`kv_format`" in problem.remedy and "`kv_scales`" in problem.remedy
    with pytest.raises(Problem, match="not among the variables"):
        guard.check_environment({name: "lowp"}, ())


def test_vllm_parses_the_command_lines(plan_with, profile_file):
    if util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    plans = [plan_with(name) for name in ("baseline", "fp8", "fp8-skip-sliding", "fp8-stock", "int8", "int8-static")]
    plans.append(plan_with("fp8", RTX, certified="flashinfer"))
    words = [planned.command[3:] for planned in plans]
    script = Path(__file__).with_name("command_script.py")
    process = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(words), capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr[-2000:]
    parsed = [tuple(settings.values()) for settings in json.loads(process.stdout)]
    skip = ["sliding_window"]
    assert parsed == [
        (None, "auto", []),
        ("CUSTOM", "fp8", []),
        ("CUSTOM", "fp8", skip),
        (None, "fp8", []),
        ("CUSTOM", "int8_per_token_head", []),
        ("CUSTOM", "fp8", []),
        ("CUSTOM", "fp8", []),
    ]


def test_a_dry_run_shows_the_whole_plan(fit_machine, simulate, model_folder):
    simulate(version="0.26.0")
    words = ["serve", "fp8", "--model", str(model_folder()), "--port", str(free_port()), "--dry-run"]
    shell = CliRunner().invoke(main, words)
    assert shell.exit_code == 0, shell.output
    for word in (
        "FP8_SINKS_PLUGIN=1",
        "FP8_SINKS_DECODER=lowp",
        "FP8_SINKS_RECORD=fp8-sinks-",
        "-u FP8_SINKS_KV_SCALES",
    ):
        assert word in shell.stdout
    assert "--attention-backend CUSTOM" in shell.stdout and "--kv-cache-dtype fp8" in shell.stdout
    planned = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert (planned["decoder"], planned["expected_backends"], planned["kv_scales"]) == ("lowp", ["CUSTOM"], None)
    assert planned["decoder_reason"] and list(fit_machine.iterdir()) == []


def test_the_path_of_scales_is_relative_to_the_file_that_names_it(profile_file, tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    profile_file("extends: fp8\nkv_scales: sub/s.safetensors\n", "base", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    derived = profile_file("extends: base/base.yaml\n")
    for name in (derived, "mine.yaml", "base/base.yaml"):
        assert profile.load(name).kv_scales == str(tmp_path / "base" / "sub" / "s.safetensors")
    absolute = profile_file("extends: fp8\nkv_scales: /abs/s.safetensors\n", "absolute")
    assert profile.load(absolute).kv_scales == "/abs/s.safetensors"
    assert profile.load(profile_file("extends: base/base.yaml\nkv_scales: null\n", "none")).kv_scales is None
    assert profile.load("fp8").kv_scales is None
    assert refused(profile.load, profile_file("extends: fp8\nkv_scales: [a]\n", "list")).kind == "profile"


def test_scales_reach_the_server(plan_with, profile_file, scale_file):
    planned = plan_with(profile_file("extends: fp8\nkv_scales: scales.safetensors\n"))
    assert planned.kv_scales == planned.environment[contract.KV_SCALES] == str(scale_file.path)
    assert contract.KV_FORMAT not in planned.environment
    assert choice.scales_hash(planned.kv_scales) == scale_file.sha256 and choice.scales_hash(None) is None


@pytest.mark.parametrize(("machine", "version"), [(HOST, "0.32.0"), (H200, "0.33.0")])
def test_the_format_and_scales_of_static_int8_reach_the_server(
    plan_with, profile_file, int8_scale_file, machine, version
):
    planned = plan_with(profile_file("extends: int8-static\nkv_scales: int8.safetensors\n"), machine, version)
    assert planned.environment[contract.KV_SCALES] == str(int8_scale_file.path)
    assert planned.environment[contract.KV_FORMAT] == "int8"
    assert choice.scales_hash(planned.kv_scales) == int8_scale_file.sha256


@pytest.mark.parametrize("value", ["fp8", "null", "[int8]", "int8_per_token_head"])
def test_a_kv_format_that_is_none(profile_file, value):
    problem = refused(profile.load, profile_file(f"extends: fp8\nkv_format: {value}\n"))
    assert problem.kind == "profile" and "kv_format" in problem.message
