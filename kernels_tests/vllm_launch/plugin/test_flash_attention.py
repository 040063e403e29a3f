"""FlashAttention's two versions: which one a GPU gets, and sinks for version 2, with a stand-in for vLLM's library."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from kernels_tests.vllm_launch.certificates import certified
from kernels_tests.vllm_launch.plugin.steps import Setup, assert_close, dense_attention, make_step, run, serve
from kernels_tests.vllm_launch.plugin.test_impl import STEPS
from vllm_launch import certificate
from vllm_launch.certificate import Status
from vllm_launch.decoder import contract
from vllm_launch.plugin.attention import buffers, flash_attention, settings
from vllm_launch.plugin.attention.flash_attention import fa2, fa3


def flash_attn_varlen_func(
    q,
    k,
    v,
    *,
    out,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    softmax_scale,
    causal,
    window_size,
    return_softmax_lse,
    fa_version,
    s_aux=None,
):
    """As vLLM's."""
    assert s_aux is None or fa_version == 3
    assert fa_version == 3 or max_seqlen_q > 1
    assert max_seqlen_k == cu_seqlens_k.diff().max() and max_seqlen_q >= cu_seqlens_q.diff().max()
    lse = dense_attention(
        *(q, k, v, out),
        cu_queries=cu_seqlens_q,
        cu_keys=cu_seqlens_k,
        longest_query=int(cu_seqlens_q.diff().max()),
        longest_key=max_seqlen_k,
        sm_scale=softmax_scale,
        causal=causal,
        window_left=window_size[0],
        sinks=s_aux,
        with_lse=True,
    )
    return (out, lse) if return_softmax_lse else out


@pytest.fixture(autouse=True)
def library(monkeypatch):
    """The stand-in, in place of `vllm.vllm_flash_attn`."""
    module = ModuleType("vllm.vllm_flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func
    module.fa_version_unsupported_reason = {2: None, 3: "FA3 needs 9.x"}.get
    monkeypatch.setitem(sys.modules, "vllm.vllm_flash_attn", module)
    return module


@pytest.mark.parametrize("window", [None, 32])
@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("attention", [fa2, fa3])
@pytest.mark.parametrize("name", ["prompts", "mixed", "one token behind the prefills"])
def test_a_step_is_attention_of_each_request(monkeypatch, name, attention, kv_dtype, window):
    server = serve(monkeypatch, Setup(window, kv_dtype), attention=attention)
    step = make_step(server, STEPS[name])
    assert_close(run(server, step), step.expected)


@pytest.mark.parametrize("attention", [fa2, fa3])
def test_a_context_over_the_scratch_runs_in_parts(monkeypatch, attention):
    monkeypatch.setattr(buffers, "SCRATCH_BYTES", 256 * 512)  # 256 tokens of 2 KV heads of 64
    server = serve(monkeypatch, Setup(kv_dtype="fp8", step_tokens=128), attention=attention)
    step = make_step(server, [(1, 9), (60, 1500), (20, 200)])
    assert_close(run(server, step), step.expected)


@pytest.mark.parametrize("sink", [-torch.inf, -1e4, 0.0, 80.0, 1e4, torch.nan])
def test_sinks_of_version_2_are_those_of_version_3(sink):
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(30, heads, 64, generator=random).bfloat16() for heads in (4, 2, 2))
    numbers = torch.tensor([0, 10, 30], dtype=torch.int32)
    options = {"cu_queries": numbers, "cu_keys": numbers, "longest_query": 20, "longest_key": 20, "sm_scale": 0.125}
    options |= {"causal": True, "window_left": -1, "sinks": torch.full((4,), sink).bfloat16(), "with_lse": False}
    outputs = [torch.full_like(q, torch.nan) for _ in range(2)]
    for attention, out in zip((fa2, fa3), outputs, strict=True):
        assert attention(q, k, v, out, **options) is None
    torch.testing.assert_close(*outputs, rtol=2**-7, atol=0, equal_nan=True)


def test_hopper_gets_version_3(monkeypatch):
    for major, expected in ((8, fa2), (9, fa3), (10, fa2), (12, fa2)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, major=major: (major, 0))
        assert flash_attention.choose(torch.device("cuda")) is expected
        assert (flash_attention.unsupported_reason(major) is None) == (expected is fa2)


def test_the_record_names_the_version(monkeypatch):
    published = []
    monkeypatch.setattr("vllm_launch.plugin.attention.record.publish", lambda record, _: published.append(record))
    for attention in (fa2, fa3):
        serve(monkeypatch, Setup(), attention=attention)
    assert [record.prefill for record in published] == ["fa2", "fa3"]


@pytest.mark.parametrize("window", [None, 32])
def test_the_start_loads_every_kernel_that_a_step_calls(monkeypatch, library, window):
    """By what selects a kernel: causal or not, with a window or not."""
    calls = set()

    def counted(*tensors, causal, window_size, max_seqlen_k, **options):
        calls.add((causal, 0 <= window_size[0] < max_seqlen_k - 1))
        return flash_attn_varlen_func(
            *tensors, causal=causal, window_size=window_size, max_seqlen_k=max_seqlen_k, **options
        )

    library.flash_attn_varlen_func = counted
    monkeypatch.setattr(buffers, "SCRATCH_BYTES", 256 * 512)
    server = serve(monkeypatch, Setup(window, "fp8", step_tokens=128), attention=fa2)
    assert calls == ({(True, True)} if window else {(True, False), (False, False)})
    loaded = set(calls)
    for requests in ([(100, 100)], [(60, 1500), (20, 200)]):
        run(server, make_step(server, requests))
    assert calls == loaded


def test_another_gpu_needs_a_certificate(monkeypatch):
    missing = Status(state="stale", reason="driver was 580, is 590", path=None)
    monkeypatch.setattr(certificate, "read", lambda: missing)
    assert settings.uncertified_reason(9, {}) is None
    for major in (8, 10, 12):
        reason = settings.uncertified_reason(major, {})
        assert missing.reason in reason and certificate.COMMAND in reason
        assert settings.uncertified_reason(major, {contract.CERTIFYING: "1"}) is None
    monkeypatch.setattr(certificate, "read", lambda: certified("lowp"))
    assert settings.uncertified_reason(12, {}) is None


def test_memory_is_reserved_by_the_first_run_only(monkeypatch):
    server, calls = serve(monkeypatch, Setup()), []
    monkeypatch.setattr(settings, "allocate", lambda *_: calls.append(1))
    layer = SimpleNamespace(impl=server.impl)
    new = torch.zeros(3, server.setup.heads, 64).bfloat16()
    server.impl.forward(layer, new, None, None, None, None, torch.ones_like(new))
    assert not calls
