"""The decoder that a server recorded, read back: as requested, or the run ends."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from flashinfer_patches.errors import EXIT_CODES
from kernels_tests.vllm_launch.machines import HOST, RTX
from kernels_tests.vllm_launch.refusals import refused
from vllm_launch import cli, server
from vllm_launch.decoder import contract
from vllm_launch.decoder.record import DecoderRecord
from vllm_launch.resolved import Mismatch, mismatches, read

LOG = Path(__file__).parents[1] / "logs" / "gpu-0.33.0-sm90-custom.log"
RECORD = {
    "version": 1,
    "decoder": "lowp",
    "prefill": "fa3",
    "cache_writer": "fp8-sinks",
    "kv_format": "e4m3",
    "kv_scales": None,
    "vllm": "0.33.0",
    "layers": 24,
    "window_layers": 12,
    "capability": "9.0",
}


def test_the_record_states_the_decoder():
    resolved = read(LOG.read_text(), "0.33.0", DecoderRecord(**RECORD))
    fields = {name: RECORD[name] for name in ("decoder", "prefill", "cache_writer", "kv_format", "kv_scales")}
    assert resolved.model_dump() == read(LOG.read_text(), "0.33.0").model_dump() | fields
    request = (["CUSTOM"], "fp8", resolved.kv_skip_layers)
    assert mismatches(resolved, *request, "lowp") == []
    assert mismatches(resolved, *request, "flashinfer") == [Mismatch("decoder", "flashinfer", "lowp")]
    assert mismatches(resolved, *request) == [Mismatch("decoder", "stock", "lowp")]


def test_other_scales_than_the_files_are_a_mismatch():
    scaled = read(LOG.read_text(), "0.33.0", DecoderRecord(**RECORD | {"kv_scales": "a" * 64}))
    request = (["CUSTOM"], "fp8", scaled.kv_skip_layers, "lowp")
    assert mismatches(scaled, *request, "a" * 64) == []
    assert mismatches(scaled, *request, "b" * 64) == [Mismatch("KV scales", "b" * 64, "a" * 64)]
    assert mismatches(scaled, *request) == [Mismatch("KV scales", "none", "a" * 64)]


def test_another_kv_format_than_the_profiles_is_a_mismatch():
    resolved = read(LOG.read_text(), "0.33.0", DecoderRecord(**RECORD))
    request = (["CUSTOM"], "fp8", resolved.kv_skip_layers, "lowp", None)
    assert mismatches(resolved, *request, "e4m3") == []
    assert mismatches(resolved, *request, "int8-static") == [Mismatch("KV format", "int8-static", "e4m3")]


@pytest.fixture
def start(plan_with, tmp_path):
    """A function that pretends a start of a server: writes its log and record, and returns what is read back."""

    def started(name="fp8", record=None, **options):
        planned = plan_with(name, overrides=["--kv-cache-dtype", "fp8_e4m3"], **options)
        log = tmp_path / "some.log"
        log.write_text(LOG.read_text())
        if record is not None:
            content = record if isinstance(record, str) else json.dumps(record)
            (tmp_path / planned.environment[contract.RECORD]).write_text(content)
        return planned, server._read_back(planned, log, 0)

    return started


def test_a_record_is_read_back(start):
    _, resolved = start(record=RECORD)
    fields = ("decoder", "prefill", "cache_writer", "kv_format", "kv_scales")
    assert {name: getattr(resolved, name) for name in fields} == {name: RECORD[name] for name in fields}
    assert resolved.attention_backends == ["CUSTOM"]
    assert start(record=RECORD | {"window_kv_format": "bf16"})[1] == resolved, "keys of a later plugin"


@pytest.mark.parametrize(
    "record",
    [
        None,
        "",
        "[]",
        '{"version": 1}',
        RECORD | {"version": 2},
        RECORD | {"decoder": "other"},
        RECORD | {"kv_format": None},
        {name: value for name, value in RECORD.items() if name != "kv_scales"},
    ],
)
def test_a_missing_or_broken_record_ends_the_run(start, record):
    problem = refused(start, record=record)
    assert problem.kind == "resolved" and "record of the decoder" in problem.message


def test_another_decoder_than_requested_ends_the_run(start):
    problem = refused(start, record=RECORD | {"decoder": "flashinfer"})
    assert problem.kind == "resolved" and "decoder: expected lowp, got flashinfer" in problem.message
    assert problem.exit_code == EXIT_CODES["resolved"]


def test_other_scales_than_requested_end_the_run(start, profile_file, scale_file):
    path = profile_file("extends: fp8\nkv_scales: scales.safetensors\n")
    _, resolved = start(path, record=RECORD | {"kv_scales": scale_file.sha256})
    assert resolved.kv_scales == scale_file.sha256
    for name, recorded in ((path, None), (path, "0" * 64), ("fp8", scale_file.sha256)):
        problem = refused(start, name, record=RECORD | {"kv_scales": recorded})
        assert problem.kind == "resolved" and "KV scales" in problem.message


def test_another_kv_format_than_requested_ends_the_run(start, profile_file, int8_scale_file):
    path = profile_file("extends: int8-static\nkv_scales: int8.safetensors\n")
    record = RECORD | {"kv_format": "int8-static", "kv_scales": int8_scale_file.sha256}
    assert start(path, record=record)[1].kv_format == "int8-static"
    problem = refused(start, path, record=record | {"kv_format": "e4m3"})
    assert problem.kind == "resolved" and "KV format: expected int8-static, got e4m3" in problem.message


def test_our_backend_without_a_decoder_is_a_mismatch(start):
    problem = refused(start, "fp8-stock")
    assert "attention backend: expected FLASH_ATTN, got CUSTOM" in problem.message


def test_serve_shows_the_decoder_and_why(start, tmp_path):
    planned, resolved = start(record=RECORD)
    running = SimpleNamespace(
        plan=planned, resolved=resolved, start_s=1.0, log=tmp_path / "some.log", supervisor=SimpleNamespace(pid=1)
    )
    rows = cli.decoder_rows(planned, resolved)
    assert rows["decoder"] == f"lowp: {planned.decoder_reason}"
    summary = cli.summary(running)
    assert (summary["requested"]["decoder"], summary["resolved"]["decoder"]) == ("lowp", "lowp")


def test_serve_says_that_a_gpu_without_a_certificate_stays_with_stock(plan_with, start):
    _, resolved = start(record=RECORD)
    stock = resolved.model_copy(update={"decoder": "stock"})
    rows = cli.decoder_rows(plan_with("fp8", RTX), stock)
    assert list(rows) == ["decoder"] and "fp8-sinks certify" in rows["decoder"]
    assert cli.decoder_rows(plan_with("fp8", HOST, "0.32.0"), stock) == {}
