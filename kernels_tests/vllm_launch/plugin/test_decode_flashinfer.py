"""Decoder flashinfer: what FlashInfer's wrapper is given, by a stand-in that computes attention from it."""

import sys
from types import ModuleType

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.v1.attention.backend import AttentionCGSupport

from flashinfer_patches.errors import Problem
from kernels_tests.vllm_launch.plugin.steps import (
    Setup,
    assert_close,
    attention,
    dense_attention,
    make_step,
    run,
    serve,
)
from vllm_launch.decoder import contract
from vllm_launch.plugin.attention import decode_flashinfer


class StandIn:
    """As `flashinfer.BatchDecodeWithPagedKVCacheWrapper` with our patches."""

    def __init__(self, workspace, layout, *, use_tensor_cores, backend):
        assert (layout, use_tensor_cores, backend) == ("HND", True, "fa2") and workspace.dtype == torch.uint8

    def plan(self, indptr, indices, last_page, query_heads, kv_heads, head_dim, page, *, use_sinks, **options):
        assert use_sinks and all(x.dtype == torch.int32 for x in (indptr, indices, last_page))
        assert indptr.device.type == last_page.device.type == "cpu" and len(indices) == indptr[-1]
        self.indptr, self.indices, self.last_page, self.page, self.options = indptr, indices, last_page, page, options

    def run(self, q, caches, *, out, sinks, k_scale, v_scale):
        assert sinks.dtype == torch.float32 and len(q) == len(self.last_page)
        for row, query in enumerate(q):
            pages = self.indices[self.indptr[row] : self.indptr[row + 1]].long()
            window = self.options["window_left"]
            length = (len(pages) - 1) * self.page + int(self.last_page[row])
            first = max(0, length - 1 - window) if window >= 0 else 0
            token = torch.arange(first, length)
            k, v = (
                cache.view(torch.int16 if cache.itemsize == 2 else torch.uint8)[
                    pages[token // self.page], :, token % self.page
                ].view(cache.dtype)
                for cache in caches
            )
            assert k.dtype == self.options["kv_data_type"]
            out[row], _ = attention(
                query[None],
                k.double() * k_scale,
                v.double() * v_scale,
                None,
                window_left=-1,
                sinks=sinks,
                sm_scale=self.options["sm_scale"],
            )


@pytest.fixture
def stand_in(monkeypatch):
    """Serve with decoder flashinfer, whose library is the stand-in."""
    module = ModuleType("flashinfer")
    module.BatchDecodeWithPagedKVCacheWrapper = StandIn
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    monkeypatch.setenv(contract.DECODER, "flashinfer")
    monkeypatch.setattr(decode_flashinfer, "WORKSPACE_BYTES", 16)
    return module


@pytest.mark.parametrize("window", [None, 32])
@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("requests", [[(1, 5), (1, 700), (1, 128)], [(1, 33), (30, 500), (7, 7)]])
def test_a_step_is_attention_of_each_request(monkeypatch, stand_in, requests, kv_dtype, window):
    server = serve(monkeypatch, Setup(window, kv_dtype), attention=dense_attention)
    step = make_step(server, requests)
    assert_close(run(server, step), step.expected)


def test_prefills_alone_need_no_plan(monkeypatch, stand_in):
    server = serve(monkeypatch, Setup(kv_dtype="fp8"), attention=dense_attention)
    step = make_step(server, [(30, 60)])
    assert not step.metadata.wrappers
    assert_close(run(server, step), step.expected)


def test_it_runs_between_the_graphs(monkeypatch, stand_in):
    server = serve(monkeypatch, Setup(), attention=dense_attention)
    assert server.builder.get_cudagraph_support(None, None) == AttentionCGSupport.NEVER
    monkeypatch.delenv(contract.DECODER)
    assert server.builder.get_cudagraph_support(None, None) == AttentionCGSupport.UNIFORM_BATCH


def test_scales_of_a_tensor(monkeypatch, stand_in):
    assert decode_flashinfer.tensor_scale(None) == 1.0
    assert decode_flashinfer.tensor_scale(torch.tensor([0.5, 0.5])) == 0.5
    with pytest.raises(NotImplementedError, match="heads differ"):
        decode_flashinfer.tensor_scale(torch.tensor([0.5, 0.25]))


def test_flashinfer_without_our_patches_is_refused(monkeypatch, stand_in):
    stand_in.BatchDecodeWithPagedKVCacheWrapper = type("Unpatched", (), {"plan": lambda self, indptr: None})
    with pytest.raises(Problem) as raised:
        serve(monkeypatch, Setup(), attention=dense_attention)
    assert "patch apply" in raised.value.remedy
