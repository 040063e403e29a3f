"""Arguments and variables that profiles and users must not set, checked against the installed vLLM's parser."""

import json
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
from click.testing import CliRunner

from flashinfer_patches.errors import USAGE, Problem
from fp8_sinks.cli import main
from kernels_tests.vllm_launch.machines import HOST
from vllm_launch import arguments, guard, plan, profile

SECRET = "hf_thisIsASecret"


def refused(words):
    """Whether a user's words are refused."""
    try:
        arguments.parse(words)
    except Problem as problem:
        assert problem.kind == "profile" and "\n" not in problem.message
        return True
    return False


def prefixes(option):
    return [option[:length] for length in range(1, len(option) + 1)]


def forms(option, config):
    """Every way to write an option and each of its prefixes."""
    for name in prefixes(option):
        for flag in (f"--{name}", f"--{name.replace('-', '_')}", f"--{name.upper()}", f"-{name}"):
            yield from ([flag], [flag, config], [f"{flag}={config}"], [f"{flag}.x", "1"], [f"{flag}.x=1"])


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    """All options of vLLM's parser, and the settings that it reads from every form of every refused option."""
    if util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    config = tmp_path_factory.mktemp("guard") / "evil.yaml"
    config.write_text("middleware: evil.Middleware\nhost: 0.0.0.0\n")
    words = [form for option in guard.OPTIONS for form in forms(option, str(config))]
    words += [[f"-{letters}", "1"] for letters in ("asc", "dpa", "dpn", "n", "r", "n2")]
    script = Path(__file__).with_name("parser_script.py")
    process = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(words), capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr[-2000:]
    report = json.loads(process.stdout)
    return report["options"], list(zip(words, report["set"], strict=True))


def test_every_form_that_vllm_parses_as_a_refused_option_is_refused(parser):
    options, parsed = parser
    settings = {option.replace("-", "_") for option in guard.OPTIONS} - {"device_memory_utilization"}
    dangerous = [words for words, names in parsed if names and settings & set(names)]
    assert {"host", "config", "api-key", "trust-remote-code"} <= {o[2:] for o in options}
    assert len(dangerous) > 500, "the forms do not reach the parser"
    assert [words for words in dangerous if not refused(words)] == []


def test_every_option_that_only_changes_the_engine_passes(parser):
    options, _ = parser
    allowed = [option for option in options if option.startswith("--") and option[2:] not in guard.OPTIONS]
    names = [option[2:] for option in allowed if option[2:].removeprefix("no-") not in guard.OPTIONS]
    assert len(names) > 150
    assert [name for name in names if refused([f"--{name}", "1"])] == []


@pytest.mark.parametrize("name", guard.PREFLIGHT_OPTIONS)
def test_an_option_that_preflight_reads_needs_its_whole_name(name):
    assert not refused([f"--{name}", "fp8"])
    shortened = [prefix for prefix in prefixes(name) if prefix not in guard.PREFLIGHT_OPTIONS]
    assert all(refused([f"--{prefix}", "fp8"]) for prefix in shortened)


@pytest.mark.parametrize(
    "vllm",
    [
        {"host": "0.0.0.0"},
        {"trust-remote-code": True},
        {"trust_remote_code": True},
        {"trust-remote-cod": True},
        {"api-key": SECRET},
        {"hf_token": SECRET},
        {"config": "evil.yaml"},
        {"host=0.0.0.0": True},
        {"x --host": "0.0.0.0"},
        {"-dpa": "10.0.0.1"},
        {"max-model-len": "--host=0.0.0.0"},
        {"kv-cache-dtype-skip-layers": ["sliding_window", "--trust-remote-code"]},
        {"stop": ["--", "x"]},
        {"hf-overrides.a": ["x", "--host=0.0.0.0"]},
        {"hf-overrides.tie_word_embeddings": True},
        {f"api-key={SECRET}": True},
        {f"-x={SECRET}": True},
        {"hf-overrides": "[" * 900 + '{"api_key": 1}' + "]" * 900},
        {"hf-overrides": {"api_key": SECRET}},
        {"hf-overrides": json.dumps({"deep": [{"hf_token": SECRET}]})},
        {"model-loader-extra-config.aws_secret": SECRET},
        {"structured-outputs-config": {"reasoning_parser_plugin": "/tmp/evil.py"}},
        {"structured-out.reasoning_parser_plugin": "/tmp/evil.py"},
        {"compilation-config": '{"inductor_passes": {"a": "evil.function"}}'},
        {"compilation-config.backend": "evil.backend"},
        {"compilation-config.backend+": "evil:backend"},
        {"compilation-config.inductor_passes.a": "evil.function"},
        {"compilation-config.inductor_compile_config.cpp.cxx": "/tmp/evil"},
        {"compilation-config.cache_dir": "/tmp/elsewhere"},
        {"compilation-config": '{"cache_dir": "/tmp/elsewhere"}'},
        {"compilation-config": {"debug_dump_path": "/tmp/elsewhere"}},
        {"compilation-config": '{"inductor_compile_config": {"cpp.cxx": [null, "/tmp/evil"]}}'},
        {"compilation-config.inductor_compile_config": {"cuda.cuda_cxx": "/tmp/evil"}},
        {"speculative-config": '{"method": "custom_class", "model": "evil.Proposer"}'},
        {"speculative-config": {"method": "custom_class", "model": "owner/name"}},
        {"speculative-config.method": "custom_class"},
        {"speculative-config.model": "evil.Proposer"},
        {"speculative-config.model": '"evil.Proposer"'},
        {"speculative-config.model": '  "evil\\u002eProposer" '},
        {"speculative-config.method": '"custom\\u005fclass"'},
        {"compilation-config.backend": '"evil\\u002ebackend"'},
        {"speculative_conf.model": "evil.package.Proposer"},
        {"speculative-config": '{"model": "evil.Proposer", "num_speculative_tokens": 1}'},
        {"speculative-config": {"model": "owner/name", "trust_remote_code": True}},
        {"spec-model": "evil.Proposer"},
        {"spec-method": "custom_class"},
        {"additional-config": {"encoder_cache_manager_cls": "evil.Manager"}},
        {"additional-config.kv_connector_module_path": "evil"},
        {"additional-config": '{"tiers": [{"type": "Tier", "module_path": "evil"}]}'},
        {"kv-events-config": {"enable_kv_cache_events": True}},
        {"allowed-origins": '["*"]'},
        {"kv_cache_dtyp": "int8_per_token_head"},
    ],
    ids=lambda vllm: str(vllm)[:60],
)
def test_a_profile_is_refused_the_same(tmp_path, plan_on_cpu, vllm):
    problem = problem_of(tmp_path, plan_on_cpu, {"extends": "baseline", "vllm": vllm})
    assert problem.kind == "profile" and problem.remedy
    assert SECRET not in problem.format_message() and "\n" not in problem.message


@pytest.mark.parametrize(
    "vllm",
    [
        {"speculative-config": '{"method": "draft_model", "model": "/models/draft.v2"}'},
        {"speculative-config": {"model": "./draft.v2", "num_speculative_tokens": 2}},
        {"speculative-config.model": "owner/gpt-oss.draft"},
        {"spec-method": "ngram", "spec-tokens": 3},
        {"compilation-config": {"backend": "inductor", "inductor_compile_config": {"max_autotune": True}}},
        {"tokenizer": "my.tokenizer"},
    ],
    ids=str,
)
def test_draft_models_and_compiler_settings_pass(tmp_path, plan_on_cpu, vllm):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"extends": "baseline", "vllm": vllm}))
    assert vllm.keys() <= plan_on_cpu(profile.load(str(path))).arguments.keys()


def test_names_that_vllm_imports_as_a_class():
    """As SpeculativeConfig._is_custom_proposer_path does."""
    names = ("evil.Proposer", "a.b.C", "é.x", "ngram", "draft", "./a.b", "/a.b", "owner/a.b", "v1.0", ".a", "a..b")
    assert [name for name in names if guard._is_import_path(name)] == ["evil.Proposer", "a.b.C", "é.x"]


def test_underscores_in_a_profile_name_the_same_argument(tmp_path, plan_on_cpu):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: baseline\nvllm: {kv_cache_dtype: fp8, hf-overrides.hidden_act: silu}\n")
    planned = plan_on_cpu(profile.load(str(path)))
    assert planned.kv_cache_dtype == "fp8" and planned.command.count("--kv-cache-dtype") == 1
    assert planned.arguments["hf-overrides.hidden_act"] == "silu", "only the option's own name has dashes"


@pytest.mark.parametrize(
    "name",
    [
        *(*plan.FIXED_ENVIRONMENT, *plan.CACHE_VARIABLES, "FP8_SINKS_RUN", "FP8_SINKS_PLUGIN", "FP8_SINKS_ANYTHING"),
        *("NO_PROXY", "no_proxy", "http_proxy", "VLLM_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "vllm_api_key"),
        *("VLLM_LOGGING_LEVEL", "VLLM_LOGGING_CONFIG_PATH", "VLLM_CONFIGURE_LOGGING", "VLLM_HOST_IP", "VLLM_PORT"),
        *("VLLM_PLUGINS", "VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_MODEL_REDIRECT_PATH"),
        *("LD_PRELOAD", "PYTHONPATH", "PATH", "HOME", "CUDA_HOME", "NCCL_NET_PLUGIN", "VLLM_RUST_FRONTEND_PATH"),
        *("PYTORCH_NVCC", "FLASHINFER_NVCC", "NCCL_NET", "NCCL_TUNER_PLUGIN", "FLASHINFER_CUBINS_REPOSITORY"),
        *(
            "TORCH_LOGS_OUT",
            "NCCL_DEBUG_FILE",
            "CUBLAS_LOGDEST_DBG",
            "TORCHINDUCTOR_MAX_AUTOTUNE",
            "OMP_TOOL_LIBRARIES",
        ),
        *("VLLM_USE_RUST_FRONTEND", "VLLM_USE_MODELSCOPE", "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR", "omp_num_threads"),
        *("NCCL_DEBUG_SUBSYS", "XOMP_NUM_THREADS", "OMP_NUM_THREADS ", "VLLM_USE_", "TORCH_COMPILE_DEBUG_DIR"),
    ],
)
def test_variables_that_a_profile_must_not_set(tmp_path, plan_on_cpu, name):
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", name: SECRET}
    problem = problem_of(tmp_path, plan_on_cpu, {"extends": "baseline", "devices": {"cpu": {"env": env}}})
    assert problem.kind == "profile" and name in problem.message and SECRET not in problem.format_message()


@pytest.mark.parametrize(
    "name",
    [
        *("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "TORCHDYNAMO_DISABLE", "VLLM_USE_FLASHINFER_SAMPLER"),
        *("PYTORCH_CUDA_ALLOC_CONF", "NCCL_DEBUG", "VLLM_ENABLE_CUDAGRAPH_GC", "VLLM_MARLIN_USE_ATOMIC_ADD"),
        *("CUDA_VISIBLE_DEVICES", "VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE", "TOKENIZERS_PARALLELISM"),
    ],
)
def test_settings_of_the_engine_pass(name):
    guard.check_environment({name: "1"}, plan.FIXED_ENVIRONMENT)


@pytest.mark.parametrize("name", profile.names())
def test_the_shipped_profiles_pass(name):
    for settings in profile.load(name).devices.values():
        guard.check_environment(settings.env, plan.FIXED_ENVIRONMENT)
        guard.check_arguments(settings.vllm)


def test_a_refused_secret_reaches_no_file_and_no_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (["--api-key", SECRET], ["--hf-tok", SECRET], ["--hf-overrides.auth_token", SECRET]):
        for command in (["bench", "serving", "baseline"], ["bench", "accuracy", "fp8"], ["serve", "fp8"]):
            result = CliRunner().invoke(main, [*command, "--", *words])
            assert result.exit_code == USAGE and SECRET not in result.output, result.output
    assert list(tmp_path.rglob("*")) == []


@pytest.fixture
def plan_on_cpu(monkeypatch, tmp_path, model_folder):
    """A function that plans a server of a profile on a simulated machine without a GPU."""
    monkeypatch.setattr(plan, "detect", lambda _device: HOST)
    monkeypatch.setattr(plan.software, "vllm_build", lambda: ("cpu", "0.32.0"))
    folder = str(model_folder())
    return lambda loaded: plan.make(loaded, port=0, cache_root=tmp_path / "cache", model_path=folder)


def problem_of(tmp_path, plan_on_cpu, content):
    """The Problem that a profile with `content` raises."""
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(content))
    with pytest.raises(Problem) as caught:
        plan_on_cpu(profile.load(str(path)))
    return caught.value
