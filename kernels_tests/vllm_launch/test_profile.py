"""Profiles and arguments: what is asked of vLLM, and which mistakes are refused."""

import pytest

from flashinfer_patches.errors import Problem
from vllm_launch import arguments, profile


def test_the_profiles_differ_in_the_kv_cache_alone():
    names = ("baseline", "fp8", "fp8-skip-sliding", "int8", "int8-static")
    base, fp8, skip, int8, static = (profile.load(name) for name in names)
    assert base.vllm["kv-cache-dtype"] == "auto"
    assert fp8.vllm["kv-cache-dtype"] == "fp8"
    assert skip.vllm["kv-cache-dtype-skip-layers"] == ["sliding_window"]
    kv_keys = {"kv-cache-dtype", "kv-cache-dtype-skip-layers"}
    assert int8.vllm["kv-cache-dtype"] == "int8_per_token_head" and static.vllm == fp8.vllm
    assert [variant.kv_format for variant in (base, fp8, int8, static)] == ["e4m3", "e4m3", "e4m3", "int8"]
    for variant in (fp8, skip, int8, static):
        assert (variant.models, variant.devices, variant.backends) == (base.models, base.devices, base.backends)
        assert {k: v for k, v in variant.vllm.items() if k not in kv_keys} == {
            k: v for k, v in base.vllm.items() if k not in kv_keys
        }


def test_the_lineage_is_the_chain_of_extends(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: fp8-skip-sliding\n")
    lineage = profile.load(str(tmp_path / "mine.yaml")).lineage
    assert lineage == ["mine", "fp8-skip-sliding", "fp8", "baseline"]
    assert profile.load("baseline").lineage == ["baseline"]


def test_how_the_real_models_are_served():
    vllm = profile.load("fp8").model_settings("gpt-oss-120b").vllm
    assert (vllm["max-model-len"], vllm["gpu-memory-utilization"]) == (131072, 0.70)
    assert vllm["load-format"] == "fastsafetensors" and "enforce-eager" not in vllm


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("extends: baseline\nkv_cache: fp8\n", "kv_cache"),
        ("extends: baseline\nvllm: [1]\n", "vllm"),
        ("extends: baseline\nmodels: [1]\n", "models"),
        ("extends: baseline\nmodels: {other: [1]}\n", "models.other"),
        ("extends: baseline\nlineage: [fp8]\n", "`lineage`"),
        ("extends: baseline\nvllm: {gpu-memory-utilization: .inf}\n", "finite"),
        ("extends: nowhere\n", "nowhere"),
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
def test_a_bad_profile_is_a_single_line_that_names_the_key(tmp_path, text, key):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(Problem) as caught:
        profile.load(str(path))
    assert key in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("greedy: {reference: fp8}", "greedy"),
        ("models: {other: {bench: {runs: 3}}}", "bench"),
        ("models: {tiny_gpt_oss: {accuracy: {source: book}}}", "accuracy"),
        ("models: {tiny_gpt_oss: {thresholds: {decode: {kl: 1}}}}", "thresholds"),
    ],
)
def test_settings_of_a_suite_are_refused_with_the_way_to_move_them(tmp_path, text, key):
    (tmp_path / "base.yaml").write_text(f"extends: baseline\n{text}\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\n")
    for name in ("base", "mine"):
        with pytest.raises(Problem) as caught:
            profile.load(str(tmp_path / f"{name}.yaml"))
        assert caught.value.kind == "profile" and f"`{key}`" in caught.value.message
        assert "--suite" in caught.value.remedy and "bench/suites/default.yaml" in caught.value.remedy


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
def test_a_name_that_is_no_path_must_be_a_shipped_profile(name):
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


def test_a_file_with_a_shipped_name_cannot_be_extended(tmp_path):
    (tmp_path / "fp8.yaml").write_text("extends: baseline\n")
    (tmp_path / "mine.yaml").write_text("extends: fp8.yaml\n")
    with pytest.raises(Problem, match="name of a profile of fp8-sinks"):
        profile.load(str(tmp_path / "mine.yaml"))


def test_the_name_is_the_files(tmp_path):
    path = tmp_path / "my-fp8.v2_a.yaml"
    path.write_text("name: my-fp8.v2_a\nextends: fp8\n")
    assert profile.load(str(path)).name == "my-fp8.v2_a"


FOR_SERVING = """
description: serving alone
vllm: {kv-cache-dtype: auto}
devices: {cpu: {default_model: tiny_gpt_oss, start_timeout_s: 60, vllm: {}, env: {VLLM_CPU_KVCACHE_SPACE: "1"}}}
backends: {cpu: [CPU_ATTN]}
models: {other: {vllm: {max-model-len: 2560}}}
"""


@pytest.fixture
def standalone(tmp_path):
    path = tmp_path / "standalone.yaml"
    path.write_text(FOR_SERVING)
    return profile.load(str(path))


def test_a_profile_may_extend_nothing(standalone):
    assert standalone.model_settings("any").vllm == {"max-model-len": 2560}
    assert standalone.lineage == ["standalone"]


def test_a_device_that_a_profile_has_not(standalone):
    with pytest.raises(Problem, match="standalone has no entry for gpu"):
        standalone.device_settings("gpu")


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
