"""Settings: defaults, under a file's, under the environment's; what is refused."""

import re

import pytest
from world.settings import KINDS, Settings, from_values, request

EARLIER_NAMES = {
    *("mxfp_enable", "mxfp_bits", "mxfp_scope", "mxfp_kernel", "mxfp_late_layers", "mxfp_list"),
    *("fp8_kv", "k_fp8", "kv_late_layers", "kv_storage", "kv_bits", "kv_tail_only", "attn_sdpa_decode"),
    *("compile", "profile_kv", "profile_kv_every", "profile_kv_first"),
}


def test_the_default_is_the_recommended_profile():
    settings = request(None, {}).settings
    assert (settings.mxfp_enable, settings.mxfp_bits, settings.mxfp_scope, settings.mxfp_kernel) == (
        True,
        8,
        "all",
        "auto",
    )
    assert (settings.fp8_kv, settings.k_fp8, settings.kv_storage, settings.kv_bits) == (True, False, "mxfp", 8)
    assert (settings.mxfp_late_layers, settings.kv_late_layers, settings.compile) == (0, 12, True)
    assert set(KINDS) >= EARLIER_NAMES


def test_a_file_goes_over_defaults_and_the_environment_over_the_file(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("mxfp_bits: 4\nkv_late_layers: 4\ncompile: off\n")
    requested = request(path, {"OWL_KV_LATE_LAYERS": "8", "OWL_K_FP8": "yes", "OWL_V_PERCENTILE": "99.5", "HOME": "/"})
    expected = Settings(mxfp_bits=4, kv_late_layers=8, compile=False, k_fp8=True, v_percentile=99.5)
    assert requested.settings == expected
    assert requested.sources == {
        "mxfp_bits": "settings.yaml",
        "compile": "settings.yaml",
        "kv_late_layers": "OWL_KV_LATE_LAYERS",
        "k_fp8": "OWL_K_FP8",
        "v_percentile": "OWL_V_PERCENTILE",
    }


@pytest.mark.parametrize("name", KINDS)
def test_each_setting_has_a_variable(name):
    texts = {bool: "true", int: "4", float: "50"}
    kind = KINDS[name]
    text = {"mxfp_scope": "attn", "mxfp_kernel": "emulated", "kv_storage": "mxfp"}.get(name, texts.get(kind, "none"))
    requested = request(None, {f"OWL_{name.upper()}": text} | ({"OWL_FP8_KV": "1"} if name == "k_fp8" else {}))
    assert requested.sources[name] == f"OWL_{name.upper()}"
    assert isinstance(getattr(requested.settings, name), kind)


def test_an_empty_file_changes_nothing(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert request(path, {}).settings == Settings()


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("mxfp_bit: 8", {}, "has the unknown key mxfp_bit; did you mean mxfp_bits?"),
        ("zebra: 8", {}, "has the unknown key zebra; expected attn_backend, attn_sdpa_decode"),
        ("", {"OWL_KV_LATE": "4"}, "the environment has the unknown key OWL_KV_LATE; did you mean OWL_KV"),
        ("", {"OWL_KV_LATE_LAYERS": "four"}, "OWL_KV_LATE_LAYERS is 'four'; expected a number (int)"),
        ("", {"OWL_K_FP8": "2"}, "OWL_K_FP8 is '2'; expected one of 1, true"),
        ("mxfp_bits: 6", {}, "mxfp_bits is 6 (settings.yaml); expected one of 8, 4"),
        ("mxfp_bits: true", {}, "mxfp_bits is True (settings.yaml); expected int"),
        ("compile: 1", {}, "compile is 1 (settings.yaml); expected bool"),
        ("kv_late_layers: -1", {}, "kv_late_layers is -1 (settings.yaml); expected at least 0"),
        ("profile_kv_every: 0", {}, "profile_kv_every is 0 (settings.yaml); expected at least 1"),
        ("v_percentile: .nan", {}, "v_percentile is nan (settings.yaml); expected at least 0"),
        ("kv_storage: i8_scale\nkv_bits: 4", {}, "4 bits of KV with kv_storage i8_scale; expected kv_storage mxfp"),
        ("fp8_kv: false\nk_fp8: true", {}, "k_fp8 is set and fp8_kv is not; expected both or neither"),
        ("attn_sdpa_decode: true\nattn_backend: flex", {}, "attn_backend is flex with attn_sdpa_decode"),
        ("v_fmt: int9", {}, "v_fmt is 'int9' (settings.yaml); expected one of bf16"),
        ("- mxfp_bits", {}, "settings.yaml holds a list; expected keys and values"),
        ("mxfp_bits: [", {}, "is missing or not YAML"),
    ],
)
def test_mistakes_are_refused(tmp_path, text, environment, message):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        request(path, environment)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.yaml is missing or not YAML"):
        request(tmp_path / "absent.yaml", {})


def test_plain_values_are_checked_too():
    assert from_values({"kv_bits": 4}).sources == {"kv_bits": "caller"}
    with pytest.raises(ValueError, match="the settings has the unknown key kv_bit"):
        from_values({"kv_bit": 4})
