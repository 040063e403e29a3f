"""KV scales inside vLLM: which heads a rank takes, which files are refused, where they are installed."""

import os
from functools import partial
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from flashinfer_patches.errors import Problem
from kernels_tests.vllm_launch.plugin.steps import (
    Setup,
    assert_close,
    dense_attention,
    make_step,
    run,
    serve,
    setup_of,
    uneven_scales,
    use_scales,
)
from vllm_launch.decoder import contract
from vllm_launch.plugin.attention import scales
from vllm_launch.plugin.attention.scales import Heads, HeadScales


@pytest.fixture
def scale_file(monkeypatch, tmp_path):
    """`use_scales` of this test."""
    return partial(use_scales, monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("kv_heads", "ranks", "shares"),
    [
        (8, 1, [range(8)]),
        (8, 2, [range(4), range(4, 8)]),
        (2, 4, [[0], [0], [1], [1]]),
        (8, 8, [[n] for n in range(8)]),
    ],
)
def test_each_rank_takes_its_heads(kv_heads, ranks, shares):
    heads = list(range(kv_heads))
    assert [heads[scales.rank_heads(Heads(1, kv_heads, rank, ranks))] for rank in range(ranks)] == [
        list(share) for share in shares
    ]


def test_the_number_of_a_layer():
    assert scales.layer_number("model.layers.17.self_attn.attn") == 17
    with pytest.raises(ValueError, match="expected one with"):
        scales.layer_number("model.attn")


def test_without_a_file_there_are_no_scales(tmp_path):
    assert scales.load_scales({}, Heads(2, 8, 0, 1), None, torch.device("cpu")) == (None, (HeadScales(),) * 2)


def test_a_file_of_another_model_is_refused(scale_file):
    config = scale_file([torch.ones(2)], [torch.ones(2)], of_config=b"another")
    for path in (config, None):
        with pytest.raises(Problem) as raised:
            scales.load_scales(os.environ, Heads(1, 2, 0, 1), path, torch.device("cpu"))
        assert raised.value.kind == "scales"


@pytest.mark.parametrize("kv_format", ["e4m3", "int8"])
def test_a_file_for_another_format_is_refused(monkeypatch, scale_file, kv_format):
    k, v = uneven_scales(Setup())
    scale_file([v.clone() if kv_format == "e4m3" else k], [v])
    monkeypatch.setenv(contract.KV_FORMAT, "int8" if kv_format == "e4m3" else "e4m3")
    with pytest.raises(Problem) as raised:
        serve(monkeypatch, Setup(kv_dtype="fp8"))
    assert raised.value.kind == "scales" and "e4m3" in raised.value.message and "int8" in raised.value.message


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_takes_its_heads_channels(scale_file, rank):
    setup = Setup(kv_heads=4)
    k, v = uneven_scales(setup)
    config = scale_file([k], [v])
    loaded = scales.load_scales(os.environ, Heads(1, 4, rank, 2), config, torch.device("cpu"))
    (mine,) = loaded.layers
    assert torch.equal(mine.k, k[2 * rank : 2 * rank + 2]) and torch.equal(mine.v, v[2 * rank : 2 * rank + 2])
    assert mine.k.is_contiguous() and mine.k.data_ptr() % 16 == 0


def test_a_file_without_a_layer_of_its_format_is_refused():
    scales.require_static({contract.KV_SCALES: "some.safetensors"}, {"bf16", "e4m3"})
    scales.require_static({contract.KV_SCALES: "some.safetensors"}, {"int8-static"})
    scales.require_static({}, {"bf16"})
    for kv_format in ("bf16", "int8"):
        with pytest.raises(Problem) as raised:
            scales.require_static({contract.KV_SCALES: "some.safetensors"}, {kv_format})
        assert raised.value.kind == "scales" and kv_format in raised.value.message


def test_writer_and_readers_have_the_same_scales(monkeypatch, scale_file):
    k, v = torch.tensor([0.25, 0.5]), torch.tensor([2.0, 0.125])
    scale_file([k], [v])
    server = serve(monkeypatch, Setup(kv_dtype="fp8"), attention=dense_attention)
    assert torch.equal(server.impl.kv_scales.k, k) and torch.equal(server.impl.kv_scales.v, v)
    step = make_step(server, [(1, 300), (1, 20), (30, 90)])
    assert_close(run(server, step), step.expected)  # by the scales that the cache was written with


def test_scales_of_the_checkpoint_are_used(monkeypatch):
    layer = SimpleNamespace(
        _k_scale=torch.tensor(0.5), _v_scale=torch.tensor(1.0), _k_scale_float=0.5, _v_scale_float=1.0
    )
    k, v = scales.checkpoint_scales(layer)
    assert k.shape == (1,) and k == 0.5 and v is None


def test_saturated_values_warn_once(monkeypatch, caplog_vllm):
    count = scales.Saturation(torch.device("cpu"))
    for _ in range(2 * scales.POLL_PERIOD):
        count.poll()
    assert not caplog_vllm
    count.counts += torch.tensor([3, 0])
    for _ in range(2 * scales.POLL_PERIOD):
        count.poll()
    assert len(caplog_vllm) == 1 and caplog_vllm[0][:2] == (3, 0)


@pytest.mark.parametrize(("kv_format", "polls"), [("e4m3", 1), ("int8-static", 1), ("bf16", 0), ("int8", 0)])
def test_a_step_polls_the_count_of_static_scales(monkeypatch, tmp_path, kv_format, polls):
    count = scales.Saturation(torch.device("cpu"))
    monkeypatch.setattr(scales, "saturation", lambda device: count)
    server = serve(monkeypatch, setup_of(monkeypatch, tmp_path, kv_format))
    make_step(server, [(1, 20)])
    assert count.steps == polls and (server.impl.saturated is count.counts) is bool(polls)


def test_the_writer_counts_saturated_int8_values(monkeypatch, tmp_path):
    server = serve(monkeypatch, setup_of(monkeypatch, tmp_path, "int8-static"), attention=dense_attention)
    before = server.impl.saturated.clone()
    new = torch.zeros(1, 2, 64)
    new[0, 1, :3] = torch.tensor([100, 0.5, -100])  # K's largest are 2 to 8, V's 3 to 6
    server.impl.do_kv_cache_update(server.layer, *[new.bfloat16()] * 2, server.cache, torch.tensor([16]))
    assert (server.impl.saturated - before).tolist() == [2, 2]


def test_the_writer_counts_saturated_values(monkeypatch):
    server = serve(monkeypatch, Setup(kv_dtype="fp8"), attention=dense_attention)
    before = server.impl.saturated.clone()
    new = torch.full((1, 2, 64), 500.0).bfloat16()
    server.impl.do_kv_cache_update(server.layer, new, new / 2, server.cache, torch.tensor([16]))
    assert (server.impl.saturated - before).tolist() == [128, 0]
    server.impl.do_kv_cache_update(server.layer, new, new, server.cache, torch.tensor([-1]))
    assert (server.impl.saturated - before).tolist() == [128, 0]


@pytest.fixture
def caplog_vllm(monkeypatch):
    """The arguments of the warnings of the scales."""
    warnings = []
    monkeypatch.setattr(scales.logger, "warning", lambda message, *arguments: warnings.append(arguments))
    return warnings
