"""KV scales inside vLLM: which heads a rank takes, which files are refused, where they are installed."""

import os
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from flashinfer_patches.errors import Problem
from kernels_tests.vllm_launch import scale_files
from kernels_tests.vllm_launch.plugin.steps import Setup, assert_close, dense_attention, make_step, run, serve
from vllm_launch.decoder import contract
from vllm_launch.plugin.attention import scales, settings
from vllm_launch.plugin.attention.scales import Heads, HeadScales

CONFIG = b"{}"


@pytest.fixture
def scale_file(monkeypatch, tmp_path):
    """Return a function that writes a file with these scales of K and V for each layer; it returns the config."""
    config, path = tmp_path / "config.json", tmp_path / "scales.safetensors"
    config.write_bytes(CONFIG)
    monkeypatch.setenv(contract.KV_SCALES, str(path))
    monkeypatch.setattr(settings, "config_path", lambda _: config)

    def write(k, v, of_config=CONFIG):
        scale_files.write(path, of_config, k, v)
        return config

    return write


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
    environment = {contract.KV_SCALES: os.environ[contract.KV_SCALES]}
    for path in (config, None):
        with pytest.raises(Problem) as raised:
            scales.load_scales(environment, Heads(1, 2, 0, 1), path, torch.device("cpu"))
        assert raised.value.kind == "scales"


def test_a_file_without_an_fp8_cache_is_refused():
    scales.require_fp8({contract.KV_SCALES: "some.safetensors"}, 1)
    scales.require_fp8({}, 0)
    with pytest.raises(Problem) as raised:
        scales.require_fp8({contract.KV_SCALES: "some.safetensors"}, 0)
    assert raised.value.kind == "scales"


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


@pytest.mark.parametrize(("kv_dtype", "polls"), [("fp8", 1), ("auto", 0)])
def test_a_step_polls_the_count(monkeypatch, kv_dtype, polls):
    count = scales.Saturation(torch.device("cpu"))
    monkeypatch.setattr(scales, "saturation", lambda device: count)
    make_step(serve(monkeypatch, Setup(kv_dtype=kv_dtype)), [(1, 20)])
    assert count.steps == polls


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
