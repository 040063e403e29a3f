"""Broken model folders: one line that names the file, a remedy, no traceback."""

import json
import os
import struct

import pytest
from click.testing import CliRunner

from flashinfer_patches.errors import ENVIRONMENT, Problem
from fp8_sinks.cli import main
from vllm_launch import model

SINKS = "model.layers.0.self_attn.sinks"


def refused(folder) -> Problem:
    with pytest.raises(Problem) as caught:
        model.find(str(folder))
    assert caught.value.kind == "model" and caught.value.remedy
    assert caught.value.format_message().encode()
    assert "\n" not in caught.value.message and len(caught.value.message) < 500
    return caught.value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("architectures", value) for value in (None, [], [None], "GptOssForCausalLM", {"a": 1}, ["\ud800"])),
        *(("model_type", value) for value in (None, 3, ["gpt_oss"], "gpt\udfff")),
        *(
            ("num_hidden_layers", value)
            for value in ("6", 0, -1, True, 1.5, float("nan"), float("inf"), None, [6], 2**70)
        ),
        *(("num_attention_heads", value) for value in (0, "16", None, 7)),
        *(("num_key_value_heads", value) for value in (0, -2, "2", 3)),
        *(("head_dim", value) for value in (0, -64, "64", 64.5)),
        *(("hidden_size", value) for value in (0, 8, "256", None)),
        *(("sliding_window", value) for value in (-1, "128", True, {})),
        *(("max_position_embeddings", value) for value in (0, "4096", None)),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_config_of_wrong_values_names_the_key(model_folder, key, value):
    message = refused(model_folder(**{key: value})).message
    assert "config.json" in message and (key in message or "heads" in message)


def test_optional_keys_may_be_null(model_folder):
    described = model.find(str(model_folder(num_key_value_heads=None, head_dim=None, sliding_window=None)))
    assert (described.kv_heads, described.head_dim, described.sliding_window) == (16, 16, None)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"null", b"17", b'"text"', b"{", b'{"architectures": ["A"]', "Café {}".encode("latin-1")),
        *(b"\x00\x01\x02", b"[" * 100_000, b'{"num_hidden_layers": ' + b"9" * 5000 + b"}"),
    ],
    ids=lambda content: repr(content[:20]),
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_file_without_a_json_map(model_folder, name, content):
    folder = model_folder()
    (folder / name).write_bytes(content)
    assert name in refused(folder).message


@pytest.mark.parametrize(
    "index",
    [
        *({}, {"weight_map": {}}, {"weight_map": None}, {"weight_map": ["model.safetensors"]}, {"weight_map": "x"}),
        *({"weight_map": {SINKS: file}} for file in ("../model.safetensors", "/etc/passwd", "", "..", 7, None, [])),
        *(
            {"weight_map": {SINKS: file}}
            for file in ("x" * 5000, "sub/a.safetensors", "a\0.safetensors", "gone.safetensors")
        ),
    ],
    ids=lambda index: str(index)[:60],
)
def test_an_index_that_does_not_name_files_of_the_folder(model_folder, index):
    folder = model_folder()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder)


def header(text: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(**changes) -> bytes:
    return json.dumps({SINKS: {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]} | changes}).encode()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\x10", header(b"{}", 2**62), header(b"{}", 2**64 - 1), header(b"{}", 3), header(b"not JSON")),
        *(
            header(b"[]"),
            header(b"null"),
            header(b"\xff\xfe{}"),
            header(b'{"a": 3}'),
            header(b'{"a": {"dtype": "BF16"}}'),
        ),
        *(header(tensor()), header(tensor(), data=b"x" * 15), header(tensor(data_offsets="ab"), data=b"x" * 16)),
        *(header(tensor(data_offsets=[0]), data=b"x"), header(tensor(data_offsets=[0, float("nan")]), data=b"x" * 16)),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n",
    ],
    ids=lambda content: repr(content[:40]),
)
def test_weights_that_are_no_complete_safetensors_file(model_folder, content):
    folder = model_folder()
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in refused(folder).message


def test_a_complete_safetensors_file(model_folder):
    folder = model_folder()
    (folder / "model.safetensors").write_bytes(header(tensor(), data=b"x" * 16))
    assert model.find(str(folder)).has_sinks


def test_a_client_of_a_server_elsewhere_needs_no_weights(model_folder):
    folder = model_folder()
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in refused(folder).message
    described = model.find(str(folder), need_weights=False)
    assert (described.weight_bytes, described.has_sinks) == (None, None) and described.max_positions


def test_the_sinks_are_those_that_the_files_have(model_folder):
    """An index that promises sinks is no proof of them."""
    folder = model_folder(names=["model.embed_tokens.weight"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {SINKS: "model.safetensors"}}))
    assert not model.find(str(folder)).has_sinks


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_a_folder_instead_of_a_file(model_folder, name):
    folder = model_folder()
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    assert name in refused(folder).message


@pytest.mark.parametrize(
    "name", ["a b/c d", "a/" + "x" * 5000, "x" * 5000, "~nobody-here/model", "a/\0b", "-/-", "a/b..c"]
)
def test_names_that_are_no_models(name):
    with pytest.raises(Problem) as caught:
        model.find(name)
    assert caught.value.kind == "model" and len(caught.value.message) < 500


@pytest.mark.parametrize("name", ["--trust-remote-code", "a\nb"])
def test_a_folder_whose_name_would_be_an_option_of_vllm(model_folder, name):
    assert "name" in refused(model_folder(name=name)).message


def test_the_command_prints_a_line_and_a_remedy(model_folder):
    folder = model_folder(architectures=None)
    result = CliRunner().invoke(main, ["serve", "baseline", "--model", os.fspath(folder)])
    assert result.exit_code == ENVIRONMENT and len(result.stderr.splitlines()) == 2
    assert "architectures" in result.stderr
