"""What the backend publishes: a line of the log, a JSON file."""

import json
import os

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from kernels_tests.vllm_launch.plugin.steps import KV_DTYPES, Setup, serve, setup_of
from vllm_launch.decoder import contract
from vllm_launch.plugin.attention import record
from vllm_launch.plugin.attention.record import Record

RECORD = Record("lowp", "fa3", "fp8-sinks", "e4m3", "e4m3", None, "0.26.0", 36, 18, "9.0")


def test_the_line():
    line = "fp8-sinks: decoder lowp, prefill fa3, writer fp8-sinks, KV e4m3, scales none"
    assert record.line(RECORD) == line
    assert record.line(RECORD._replace(window_kv_format="bf16", kv_scales="0123456789abcdef")) == (
        "fp8-sinks: decoder lowp, prefill fa3, writer fp8-sinks, KV e4m3 (window layers bf16), scales 0123456789ab"
    )
    assert "KV int8-static, scales 0123" in record.line(
        RECORD._replace(kv_format="int8-static", window_kv_format="int8-static", kv_scales="0123456789abcdef")
    )


def test_the_file_is_written_whole(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("an older one")
    record.write(RECORD, path)
    assert json.loads(path.read_text()) == {"version": 1} | RECORD._asdict()
    assert os.listdir(tmp_path) == ["record.json"]


@pytest.mark.parametrize("kv_format", KV_DTYPES)
def test_a_server_publishes_once(monkeypatch, tmp_path, kv_format):
    path, lines = tmp_path / "record.json", []
    monkeypatch.setenv(contract.RECORD, str(path))
    monkeypatch.setattr(record.logger, "info", lines.append)
    server = serve(monkeypatch, setup_of(monkeypatch, tmp_path, kv_format, 128))
    type(server.builder)(
        server.builder.kv_cache_spec, list(server.builder.impls), server.builder.vllm_config, server.cache.device
    )
    content = json.loads(path.read_text())
    assert content["kv_format"] == content["window_kv_format"] == kv_format
    assert (content["layers"], content["window_layers"]) == (1, 1)
    assert (content["kv_scales"] is None) is (kv_format != "int8-static")
    assert len(lines) == 1 and f"KV {kv_format}, " in lines[0]


def test_other_ranks_publish_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv(contract.RECORD, str(tmp_path / "record.json"))
    monkeypatch.setattr(Setup, "config", with_rank_1(Setup.config))
    serve(monkeypatch, Setup())
    assert not os.listdir(tmp_path)


def with_rank_1(config):
    def changed(setup):
        namespace = config(setup)
        namespace.parallel_config.rank = 1
        return namespace

    return changed
