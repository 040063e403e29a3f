"""A layer's attention over made steps, on a CPU: the kernels' float64 references, and dense attention for prefills."""

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from kernels_tests.vllm_launch.plugin.steps import (
    KV_DTYPES,
    Setup,
    assert_close,
    assert_mutant_fails,
    dense_attention,
    make_step,
    run,
    serve,
    setup_of,
)

STEPS = {
    "decode": [(1, 5), (1, 1), (1, 700), (1, 129)],
    "prompts": [(40, 40), (1, 1), (300, 300)],
    "with context": [(20, 90), (200, 700), (16, 32)],
    "mixed": [(1, 33), (1, 400), (30, 500), (7, 23), (128, 128), (5, 5)],
    "context behind a prompt": [(50, 50), (20, 90), (30, 30)],
    "one token behind the prefills": [(50, 90), (1, 200)],
}


@pytest.mark.parametrize("window", [None, 32])
@pytest.mark.parametrize("kv_format", KV_DTYPES)
@pytest.mark.parametrize("requests", STEPS.values(), ids=STEPS)
def test_a_step_is_attention_of_each_request(monkeypatch, tmp_path, requests, kv_format, window):
    server = serve(monkeypatch, setup_of(monkeypatch, tmp_path, kv_format, window), attention=dense_attention)
    assert server.impl.kv_format == kv_format
    step = make_step(server, requests)
    assert_close(run(server, step), step.expected)


# What a reader would have that takes wrong scales.
MUTANTS = {
    "the neighbour token's scales": ("int8", lambda x: rolled(x, -1)),
    "the neighbour head's scales": ("int8", lambda x: rolled(x, 1)),
    "K's and V's scales swapped": ("int8", lambda x: x._replace(k_scale=x.v_scale, v_scale=x.k_scale)),
    "K's scales per head": ("int8-static", lambda x: x._replace(k_scale=x.k_scale.mean(-1))),
    "the neighbour channel's scale": ("int8-static", lambda x: x._replace(k_scale=x.k_scale.roll(1, -1))),
    "the neighbour head's scales per channel": ("int8-static", lambda x: x._replace(k_scale=x.k_scale.flip(0))),
    "the neighbour head's scale of V": ("int8-static", lambda x: x._replace(v_scale=x.v_scale.flip(0))),
    "scales of 1.0": ("int8-static", lambda x: x._replace(k_scale=torch.ones_like(x.k_scale))),
}


def rolled(views, axis: int):
    return views._replace(k_scale=views.k_scale.roll(1, axis), v_scale=views.v_scale.roll(1, axis))


@pytest.mark.parametrize(("kv_format", "mutate"), MUTANTS.values(), ids=MUTANTS)
def test_wrong_scales_give_wrong_attention(monkeypatch, tmp_path, kv_format, mutate):
    server = serve(monkeypatch, setup_of(monkeypatch, tmp_path, kv_format), attention=dense_attention)
    for requests in (STEPS["decode"], STEPS["with context"]):
        assert_mutant_fails(monkeypatch, server, make_step(server, requests), mutate)


def test_padding_is_zero(monkeypatch):
    server = serve(monkeypatch, Setup(kv_dtype="fp8"), attention=dense_attention)
    step = make_step(server, [(1, 33), (30, 60)], padded_tokens=40, padded_requests=6)
    out = run(server, step)
    assert_close(out[: step.tokens], step.expected[: step.tokens])
    assert not out[step.tokens :].any()


@pytest.mark.parametrize("requests", [[(4, 50), (4, 4), (4, 300)], [(4, 50), (1, 9), (3, 300), (1, 1), (60, 80)]])
def test_several_query_tokens(monkeypatch, requests):
    server = serve(monkeypatch, Setup(kv_dtype="fp8", drafts=3), attention=dense_attention)
    step = make_step(server, requests)
    assert step.metadata.decodes.query_tokens == 4
    assert_close(run(server, step), step.expected)


def test_a_context_over_the_scratch_runs_in_parts(monkeypatch):
    from vllm_launch.plugin.attention import buffers

    monkeypatch.setattr(buffers, "SCRATCH_BYTES", 256 * 512)  # 256 tokens of 2 KV heads of 64
    server = serve(monkeypatch, Setup(kv_dtype="fp8", step_tokens=128), attention=dense_attention)
    step = make_step(server, [(1, 9), (60, 1500), (20, 200)])
    assert [len(group) for group in step.metadata.prefills[-1]] == [7, 1]
    assert_close(run(server, step), step.expected)


def test_layers_with_and_without_window_share_a_builder(monkeypatch):
    """As without vLLM's hybrid KV cache manager, where all layers are one group."""
    server = serve(monkeypatch, Setup(kv_dtype="fp8"), attention=dense_attention)
    server.builder.windows = [-1, 31]
    step = make_step(server, [(40, 200)])
    assert sorted(step.metadata.prefills) == [-1, 31]
    (full,), (window,) = step.metadata.prefills[-1], step.metadata.prefills[31]
    assert full[0].piece.starts == (0,) and window[0].piece.starts == (129,)


def test_a_context_length_fitted_to_the_memory_keeps_the_profiled_buffers(monkeypatch):
    """As with --max-model-len auto: vLLM lowers it after the profiling run."""
    server = serve(monkeypatch, Setup(kv_dtype="fp8"), attention=dense_attention)
    config = server.builder.vllm_config
    config.model_config.max_model_len = 1024
    fitted = type(server.builder)(server.builder.kv_cache_spec, list(server.builder.impls), config, server.cache.device)
    assert fitted.buffers is server.builder.buffers
    assert server.builder.widths == {128} and fitted.widths == {64}


def test_a_step_reads_sinks_reloaded_into_the_same_memory(monkeypatch):
    server = serve(monkeypatch, Setup(), attention=dense_attention)
    address = server.impl.fp32_sinks.data_ptr()
    with torch.no_grad():
        server.impl.sinks.fill_(0.5)
    server.impl.process_weights_after_loading(torch.bfloat16)
    assert server.impl.fp32_sinks.data_ptr() == address and (server.impl.fp32_sinks == 0.5).all()
    step = make_step(server, [(1, 20)])
    assert_close(run(server, step), step.expected)
