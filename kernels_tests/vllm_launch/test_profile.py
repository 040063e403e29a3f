"""Profiles and arguments: what is asked of vLLM, and which mistakes are refused."""

import pytest

from flashinfer_patches.errors import Problem
from vllm_launch import arguments, profile


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
        ("extends: baseline\nmodels: {tiny_gpt_oss: {thresholds: {decode: {kl: .inf}}}}\n", "finite"),
        ("extends: baseline\nmodels: {other: {bench: {depth: []}}}\n", "bench.depth"),
        ("extends: baseline\ngreedy: {prompts: []}\n", "greedy.prompts"),
        ("extends: baseline\nvllm: {seed: 1}\nvllm: {seed: 2}\n", "'vllm' is there twice"),
        ("extends: baseline\nvllm: {seed: 1, seed: 2}\n", "'seed' is there twice"),
        ("extends: baseline\nvllm: {hf-overrides: {a: 2020-01-01}}\n", "mine.yaml holds"),
        ("extends: baseline\nvllm: {hf-overrides: &a {a: *a}}\n", "mine.yaml holds"),
        ("extends: baseline\nvllm: {a: 2020-99-99}\n", "mine.yaml holds"),
        ('extends: baseline\nvllm: {dtype: "a\\0b"}\n', "mine.yaml holds"),
        ('extends: baseline\nvllm: {dtype: "\\ud800"}\n', "mine.yaml holds"),
        ("extends: [baseline]\n", "baseline"),
        ("extends: ../profiles/baseline\n", "no profile"),
        ("name: baseline\nextends: baseline\n", "`name`"),
        ("1: x\nextends: baseline\n", "1"),
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
    assert caught.value.exit_code == 2


def test_a_profile_that_extends_itself_is_refused(tmp_path):
    path = tmp_path / "loop.yaml"
    path.write_text("extends: loop.yaml\n")
    with pytest.raises(Problem, match="extends itself"):
        profile.load(str(path))


def test_a_longer_way_round_is_seen_too(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "loop.yaml").write_text("extends: sub/../loop.yaml\n")
    with pytest.raises(Problem, match="extends itself"):
        profile.load(str(tmp_path / "loop.yaml"))


def test_a_profile_that_is_not_utf_8(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes("extends: baseline\ndescription: Café\n".encode("latin-1"))
    with pytest.raises(Problem, match=r"cannot read .*mine\.yaml") as caught:
        profile.load(str(path))
    assert caught.value.exit_code == 2 and "\n" not in caught.value.message


def test_keys_that_a_merge_key_brings_may_be_overridden(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: baseline\ndevices: {cpu: &a {env: {A: '1'}}, gpu: {<<: *a, env: {B: '2'}}}\n")
    assert "B" in profile.load(str(path)).devices["gpu"].env


@pytest.mark.parametrize(
    "stem",
    ["a..b", ".hidden", "-x", "with space", "new\nline", "x" * 65, "cache", "plots", "result.json", "a.log", "é"],
)
def test_names_that_no_profile_can_have(tmp_path, stem):
    path = tmp_path / f"{stem}.yaml"
    path.write_text("extends: baseline\n")
    with pytest.raises(Problem, match="no profile can have that name") as caught:
        profile.load(str(path))
    assert "rename" in caught.value.remedy


@pytest.mark.parametrize("name", ["../baseline", "/etc/passwd", "..", "", "profiles/baseline", "Baseline"])
def test_a_name_without_a_file_is_one_of_ours(name):
    with pytest.raises(Problem, match="no profile") as caught:
        profile.load(name)
    assert "baseline" in caught.value.remedy


def test_our_names_are_for_our_files_alone(tmp_path):
    for name in profile.names():
        path = tmp_path / f"{name}.yaml"
        path.write_bytes((profile.FOLDER / f"{name}.yaml").read_bytes())
        with pytest.raises(Problem, match="name of a profile of fp8-sinks") as caught:
            profile.load(str(path))
        assert f"my-{name}.yaml" in caught.value.remedy
        assert profile.load(str(profile.FOLDER / f"{name}.yaml")) == profile.load(name)


def test_the_name_is_the_files(tmp_path):
    path = tmp_path / "my-fp8.v2_a.yaml"
    path.write_text("name: my-fp8.v2_a\nextends: fp8\n")
    assert profile.load(str(path)).name == "my-fp8.v2_a"


def test_a_reference_is_found_beside_the_file_that_names_it(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mine-base.yaml").write_text("extends: baseline\ngreedy: {reference: mine-base.yaml}\n")
    (tmp_path / "deep" / "mine.yaml").write_text("extends: mine-base.yaml\nvllm: {kv-cache-dtype: fp8}\n")
    (tmp_path / "over.yaml").write_text("extends: deep/mine.yaml\n")
    monkeypatch.chdir(tmp_path)
    for path in ("deep/mine.yaml", "deep/mine-base.yaml", "over.yaml"):
        assert profile.load(profile.load(path).greedy.reference).name == "mine-base"
    assert profile.load(profile.load("fp8").greedy.reference).name == "baseline"


FOR_SERVING = """
description: serving alone
vllm: {kv-cache-dtype: auto}
devices: {cpu: {default_model: tiny_gpt_oss, start_timeout_s: 60, vllm: {}, env: {VLLM_CPU_KVCACHE_SPACE: "1"}}}
backends: {cpu: [CPU_ATTN]}
models: {other: {vllm: {max-model-len: 2048}}}
"""


@pytest.fixture
def for_serving(tmp_path):
    path = tmp_path / "serving-alone.yaml"
    path.write_text(FOR_SERVING)
    return profile.load(str(path))


def test_a_profile_for_serving_alone_needs_nothing_of_benches(for_serving):
    assert for_serving.model_settings("any").vllm == {"max-model-len": 2048}
    with pytest.raises(Problem) as caught:
        for_serving.check_measurable("any")
    assert caught.value.kind == "profile" and "extends: baseline" in caught.value.remedy
    assert all(word in caught.value.message for word in ("bench", "accuracy", "greedy"))
    for name in profile.names():
        profile.load(name).check_measurable("any")


def test_a_device_that_a_profile_has_not(for_serving):
    with pytest.raises(Problem, match="serving-alone has no entry for gpu"):
        for_serving.device_settings("gpu")


def test_a_profile_without_settings_for_other_models(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FOR_SERVING.replace("other:", "gpt-oss-20b:"))
    with pytest.raises(Problem, match="other"):
        profile.load(str(path))


@pytest.mark.parametrize("backends", ["{cpu: []}", '{cpu: {"0.32": []}}'])
def test_a_profile_that_accepts_no_backend(tmp_path, backends):
    path = tmp_path / "mine.yaml"
    path.write_text(FOR_SERVING.replace("{cpu: [CPU_ATTN]}", backends))
    with pytest.raises(Problem, match=r"mine\.yaml: backends\.cpu") as caught:
        profile.load(str(path))
    assert caught.value.kind == "profile" and "\n" not in caught.value.message


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
    assert caught.value.exit_code == 2
