"""The decoder that an engine's process reports: the one that our plugin recorded, or an error."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from bench.engine.inside import process
from bench.engine.variants import named
from vllm_launch.decoder import contract
from vllm_launch.plugin.attention import record

RECORD = record.Record("lowp", "fa3", "fp8-sinks", "e4m3", "e4m3", None, "0.26.0", 36, 18, "9.0")


@pytest.fixture
def path(monkeypatch, tmp_path):
    monkeypatch.setenv(contract.RECORD, str(tmp_path / "record.json"))
    return tmp_path / "record.json"


def decoder(variant: str) -> str:
    return process.decoder(SimpleNamespace(variant=named(variant)))


def test_it_is_the_plugins(path):
    record.write(RECORD, path)
    assert decoder("plugin-fp8") == "lowp"
    with pytest.raises(RuntimeError, match="expected flashinfer, got lowp"):
        decoder("plugin-fp8-flashinfer")


@pytest.mark.parametrize(("variant", "kv_format"), [("plugin-int8", "int8"), ("plugin-int8-static", "int8-static")])
def test_it_reads_the_variants_format(path, variant, kv_format):
    record.write(RECORD._replace(kv_format=kv_format), path)
    assert decoder(variant) == "lowp"
    record.write(RECORD, path)
    with pytest.raises(RuntimeError, match=f"expected {kv_format}, got e4m3"):
        decoder(variant)


@pytest.mark.parametrize("content", [None, b"", b'{"version": 2, "decoder": "lowp"}'])
def test_without_a_valid_record_it_is_an_error(path, content):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"record\.json"):
        decoder("plugin-fp8")


def test_stock_has_no_record(path):
    assert decoder("stock-fp8") == "stock"
