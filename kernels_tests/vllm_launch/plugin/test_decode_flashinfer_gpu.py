"""Decoder flashinfer over made steps on an H200. Needs vLLM for CUDA, and FlashInfer patched: fp8-sinks patch apply."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from kernels_tests.vllm_launch.plugin.steps import Setup, assert_close, make_step, run, serve
from kernels_tests.vllm_launch.plugin.test_impl_gpu import GPT_OSS, LARGE_STEPS
from vllm_launch.decoder import contract

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("requests", LARGE_STEPS.values(), ids=LARGE_STEPS)
def test_a_step_is_attention_of_each_request(monkeypatch, requests, kv_dtype, window):
    monkeypatch.setenv(contract.DECODER, "flashinfer")
    server = serve(monkeypatch, Setup(window, kv_dtype, **GPT_OSS))
    server.cache[0].zero_()  # vLLM's null page, which the kernel may read and mask
    for _ in range(2):  # a wrapper is planned anew
        step = make_step(server, requests, unused_page=0)
        assert_close(run(server, step), step.expected)
