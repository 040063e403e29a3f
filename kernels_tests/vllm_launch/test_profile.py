"""Profiles and arguments: what is asked of vLLM, and which mistakes are refused."""

import pytest

from vllm_launch import arguments, profile
from vllm_launch.errors import Problem


def test_the_three_profiles_differ_in_the_kv_cache_and_its_accuracy_gates_alone():
    base, fp8, skip = (profile.load(name) for name in ("baseline", "fp8", "fp8-skip-sliding"))
    assert base.vllm["kv-cache-dtype"] == "auto"
    assert fp8.vllm["kv-cache-dtype"] == "fp8"
    assert skip.vllm["kv-cache-dtype-skip-layers"] == ["sliding_window"]
    kv_keys = {"kv-cache-dtype", "kv-cache-dtype-skip-layers"}
    for other in (fp8, skip):
        for name in base.models:
            own, common = (one.model_settings(name).model_dump(exclude={"thresholds"}) for one in (other, base))
            assert own == common
        assert other.backends == base.backends
        assert {k: v for k, v in other.vllm.items() if k not in kv_keys} == {
            k: v for k, v in base.vllm.items() if k not in kv_keys
        }


@pytest.mark.parametrize("name", ["baseline", "fp8", "fp8-skip-sliding"])
def test_the_embedded_model_is_judged_and_the_real_ones_only_measured(name):
    one = profile.load(name)
    judged = one.model_settings("tiny_gpt_oss").thresholds
    assert None not in judged.decode.model_dump().values() and None not in judged.sinks.model_dump().values()
    assert judged.paths.mean_abs_delta and judged.decode_at_context.mean_abs_delta > judged.decode.mean_abs_delta
    for model in ("gpt-oss-20b", "gpt-oss-120b", "anything else"):
        assert one.model_settings(model).thresholds == profile.Thresholds()


def test_every_model_is_scored_on_4000_tokens_or_more_within_its_context():
    for settings in profile.load("baseline").models.values():
        longest = max(place.context + place.tokens for place in settings.accuracy.at)
        assert settings.accuracy.tokens >= 4000
        assert longest < settings.vllm.get("max-model-len", 4096)
        assert min(place.texts for place in settings.accuracy.at) >= 8, "fewer have no interval"


def test_the_original_plan_is_in_the_profile():
    settings = profile.load("fp8").model_settings("gpt-oss-120b")
    assert settings.vllm["max-model-len"] == 131072
    assert settings.vllm["gpu-memory-utilization"] == 0.70
    assert settings.vllm["load-format"] == "fastsafetensors"
    assert "enforce-eager" not in settings.vllm
    assert (settings.bench.prompt, settings.bench.output, settings.bench.runs) == ([2048], [32, 128], 10)
    assert (settings.bench.depth[0], settings.bench.depth[-1]) == (0, 122880)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("extends: baseline\nkv_cache: fp8\n", "kv_cache"),
        ("extends: baseline\nvllm: [1]\n", "vllm"),
        ("extends: baseline\ngreedy: {min_match: 1.5}\n", "greedy.min_match"),
        ("extends: baseline\nmodels: {other: {bench: {runs: 0}}}\n", "runs"),
        ("extends: baseline\nmodels: {other: {thresholds: {decode: {top1: 95}}}}\n", "top1"),
        ("extends: baseline\nmodels: {other: {accuracy: {at: []}}}\n", "accuracy.at"),
        ("extends: nowhere\n", "nowhere"),
        ("just text\n", "map of keys"),
        ("a: [\n", "cannot read"),
    ],
)
def test_a_bad_profile_is_one_line_that_names_the_key(tmp_path, text, named):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(Problem) as caught:
        profile.load(str(path))
    assert named in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 10


def test_a_profile_that_extends_itself_is_refused(tmp_path):
    path = tmp_path / "loop.yaml"
    path.write_text("extends: loop.yaml\n")
    with pytest.raises(Problem, match="extends itself"):
        profile.load(str(path))


def test_expected_backends_follow_family_and_version():
    fp8 = profile.load("fp8")
    assert fp8.expected_backends("sm90", "0.26.0") == ["FLASH_ATTN"]
    assert fp8.expected_backends("sm12x", "0.26.0") == ["TRITON_ATTN"]
    assert fp8.expected_backends("sm12x", "0.33.0") == ["FLASHINFER"]
    with pytest.raises(Problem, match="sm80"):
        fp8.expected_backends("sm80", "0.26.0")


def test_command_line_words_win_over_the_profile():
    merged = arguments.merge(
        {"max-model-len": 4096, "enforce-eager": True, "enable-prefix-caching": True},
        arguments.parse(["--max_model_len=8192", "--no-enforce-eager", "--stop", "a", "b"]),
    )
    assert merged == {
        "enable-prefix-caching": True,
        "max-model-len": "8192",
        "no-enforce-eager": True,
        "stop": ["a", "b"],
    }


def test_words_writes_each_kind_of_value():
    assert arguments.words({"a": True, "b": False, "c": {"x": 1}, "d": ["1", "2"], "e": 0.5, "-O": "3"}) == (
        ["--a", "--no-b", "--c", '{"x":1}', "--d", "1", "2", "--e", "0.5", "-O", "3"]
    )


def test_a_negative_number_is_a_value():
    assert arguments.parse(["--seed", "-1"]) == {"seed": "-1"}


@pytest.mark.parametrize("words", [["--host", "0.0.0.0"], ["--api-key=x"], ["--trust_remote_code"], ["8192"]])
def test_arguments_that_the_launcher_owns_are_refused(words):
    with pytest.raises(Problem) as caught:
        arguments.parse(words)
    assert caught.value.exit_code == 10
