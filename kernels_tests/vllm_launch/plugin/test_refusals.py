"""What is refused when a server starts, with its reason, and the memory that is reserved."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from flashinfer_patches.errors import Problem
from kernels_tests.vllm_launch.plugin.steps import Setup, make_impl, make_step, serve, setup_of
from vllm_launch.decoder import contract
from vllm_launch.plugin.attention import buffers, prefill, settings
from vllm_launch.plugin.attention.buffers import Geometry, Limits
from vllm_launch.plugin.attention.impl import SinkImpl


def refused(monkeypatch, config=None, setup=None, **arguments):
    with pytest.raises(NotImplementedError) as raised:
        make_impl(monkeypatch, setup or Setup(), config, **arguments)
    return str(raised.value)


def test_models_that_are_refused(monkeypatch):
    assert "without sinks" in refused(monkeypatch, sinks=None)
    assert "chunk_lookback" in refused(monkeypatch, chunk_lookback=3)
    assert "fp8_e5m2" in refused(monkeypatch, setup=Setup(kv_dtype="fp8_e5m2"))


@pytest.mark.parametrize(
    ("position", "value", "reason"),
    [(4, [1.0], "ALiBi"), (7, 30.0, "soft capping"), (8, "encoder", "encoder"), (9, "model.layers.0", "KV sharing")],
)
def test_layers_that_are_refused(monkeypatch, position, value, reason):
    setup = Setup()
    make_impl(monkeypatch, setup)  # puts the made config in place
    arguments = [setup.heads, 64, 0.125, setup.kv_heads, None, None, "auto", None, "decoder", None]
    arguments[position] = value
    with pytest.raises(NotImplementedError, match=reason):
        SinkImpl(*arguments, sinks=torch.zeros(setup.heads))


@pytest.mark.parametrize("dimension", ["dcp", "pcp"])
def test_context_parallelism_is_refused(monkeypatch, dimension):
    new = SinkImpl.__new__

    def of_two_ranks(cls, *arguments, **options):
        layer = new(cls, *arguments, **options)
        setattr(layer, f"{dimension}_world_size", 2)
        return layer

    monkeypatch.setattr(SinkImpl, "__new__", of_two_ranks)
    assert "context parallelism" in refused(monkeypatch)


def test_settings_that_are_refused(monkeypatch):
    config = Setup().config()
    config.parallel_config.use_ubatching = True
    config.cache_config.calculate_kv_scales = True
    config.model_config.enable_sleep_mode = True
    message = refused(monkeypatch, config)
    assert all(setting in message for setting in ("microbatches", "--calculate-kv-scales", "sleep mode"))
    assert "4 drafts" in refused(monkeypatch, setup=Setup(drafts=4))
    make_impl(monkeypatch, Setup(drafts=3))


def test_decoders(monkeypatch):
    assert settings.requested_decoder({}) == "lowp"
    with pytest.raises(ValueError, match="lowp or flashinfer"):
        settings.requested_decoder({contract.DECODER: "other"})
    monkeypatch.setenv(contract.DECODER, "flashinfer")
    assert "drafts with decoder flashinfer" in refused(monkeypatch, setup=Setup(drafts=1))


@pytest.mark.parametrize("kv_dtype", ["fp8", "int8_per_token_head"])
def test_int8_with_decoder_flashinfer_is_refused(monkeypatch, tmp_path, kv_dtype):
    if kv_dtype == "fp8":
        setup_of(monkeypatch, tmp_path, "int8-static")
    make_impl(monkeypatch, Setup(kv_dtype=kv_dtype))
    monkeypatch.setenv(contract.DECODER, "flashinfer")
    with pytest.raises(Problem) as raised:
        make_impl(monkeypatch, Setup(kv_dtype=kv_dtype))
    assert "expected lowp" in raised.value.message


def test_int8_static_without_its_file_or_cache_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(contract.KV_FORMAT, "int8")
    with pytest.raises(Problem, match="expected a scale file"):
        make_impl(monkeypatch, Setup(kv_dtype="fp8"))
    setup_of(monkeypatch, tmp_path, "int8-static")
    for kv_dtype in ("auto", "bfloat16", "int8_per_token_head"):
        with pytest.raises(Problem, match="expected fp8"):
            make_impl(monkeypatch, Setup(kv_dtype=kv_dtype))


@pytest.mark.parametrize("kv_format", ["int8", "int8-static"])
def test_layers_that_are_skipped_keep_bf16(monkeypatch, tmp_path, kv_format):
    """As vLLM makes a layer of --kv-cache-dtype-skip-layers: its own cache dtype is auto."""
    setup = setup_of(monkeypatch, tmp_path, kv_format)
    server = make_impl(monkeypatch, replace(setup, kv_dtype="auto"), setup.config())
    assert server.kv_format == "bf16"


def test_steps_that_are_refused(monkeypatch):
    server = serve(monkeypatch, Setup())
    step = make_step(server, [(1, 20)])
    with pytest.raises(NotImplementedError, match="cascade"):
        server.builder.build(16, step.common)
    for causal in (False, torch.ones(1, dtype=torch.bool)):
        with pytest.raises(NotImplementedError, match="non-causal"):
            server.builder.build(0, replace(step.common, causal=causal))
    for scale in ("output_scale", "output_block_scale"):
        with pytest.raises(NotImplementedError, match="quantised"):
            server.impl.forward(
                *(server.layer, step.query, step.key, step.value, server.cache, step.metadata, step.query),
                **{scale: torch.ones(1)},
            )


@pytest.mark.parametrize(("scratch_tokens", "reserved"), [(256, [(16, 64, 128)]), (2048, [])])
def test_the_profiling_run_reserves_memory_for_merging(monkeypatch, scratch_tokens, reserved):
    """Only where a request's keys may not fit into the scratch."""
    calls = []
    monkeypatch.setattr(buffers, "SCRATCH_BYTES", scratch_tokens * 512)
    monkeypatch.setattr(prefill, "reserve", lambda *arguments: calls.append(arguments[:-1]))
    serve(monkeypatch, Setup(step_tokens=128))
    assert calls == reserved


GPT_OSS = Geometry(64, 8, 64)


@pytest.mark.parametrize(
    ("geometry", "request_tokens", "rows"),
    [
        (GPT_OSS, 131072, 131072),
        (GPT_OSS, 262144, 131072),
        (GPT_OSS, 4096, 8320),  # a step's tokens behind a window
        (Geometry(8, 1, 64), 131072, 131072),
        (Geometry(64, 8, 128), 131072, 65536),
    ],
)
def test_the_scratch_holds_a_request_within_its_limit(geometry, request_tokens, rows):
    limits = Limits(128, 8192, request_tokens, 1)
    assert buffers.scratch_rows(limits, geometry, 127) == rows
    assert rows * 4 * geometry.kv_heads * geometry.head_dim <= buffers.SCRATCH_BYTES


def test_a_step_over_the_scratch_is_refused():
    with pytest.raises(NotImplementedError, match="max-num-batched-tokens"):
        buffers.scratch_rows(Limits(128, 131072, 131072, 1), GPT_OSS, 127)


def test_buffers_are_shared_and_stay():
    device, limits = torch.device("cpu"), Limits(2, 64, 64, 1)
    assert buffers.allocate(limits, GPT_OSS, 64, device) is buffers.allocate(limits, GPT_OSS, 64, device)
