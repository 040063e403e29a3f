"""`fp8-sinks certify` on a GPU: right kernels and graphs pass, wrong ones fail; the whole command."""

import math
import time

import pytest
import torch
from click.testing import CliRunner

from bench.certify import correctness, speed
from bench.certify.budget import watch
from bench.certify.correctness import Kernels
from flashinfer_patches.errors import ENVIRONMENT
from fp8_sinks.cli import main
from lowp.cache_read import cache_read
from lowp.cache_write import cache_write
from lowp.sink_decode import sink_decode
from vllm_launch import certificate, software
from vllm_launch.terminal import Display

pytestmark = pytest.mark.gpu


never = watch(math.inf)


def test_right_kernels_pass():
    checks = [*correctness.check_calls(Kernels(), "cuda", never), correctness.check_graphs(Kernels(), never)]
    assert [(check.name, check.verdict, check.problems) for check in checks] == [
        (name, "passed", []) for name in ("decode", "cache_write", "cache_read", "graph")
    ]


def test_a_wrong_decode_kernel_fails():
    def wrong(**arguments):
        sink_decode(**arguments | {"sinks": torch.full_like(arguments["sinks"], -math.inf)})

    assert correctness.check_decode(wrong, "cuda", never).verdict == "failed"
    assert correctness.check_graphs(Kernels(decode=wrong), never).verdict == "failed"


@pytest.mark.parametrize("name", ["write", "read"])
def test_a_graph_with_a_copy_of_its_scales_fails(name):
    """Scales that a graph holds a copy of."""
    kernel, copies = {"write": cache_write, "read": cache_read}[name], {}

    def wrong(**arguments):
        kernel(**arguments | {"k_scale": copies.setdefault("k_scale", arguments["k_scale"].clone())})

    assert correctness.check_graphs(Kernels(**{name: wrong}), never).verdict == "failed"


def test_the_speed_of_our_decoder():
    measured = speed.check(Display(print, print, print), never)
    assert measured.check.verdict == "passed", measured.check
    assert {timing.shape for timing in measured.timings if timing.decoder == "lowp"} == {*speed.SHAPES}
    assert speed.fastest(measured.timings) != "stock"


def test_the_whole_command(tmp_path, monkeypatch):
    """Its certificate is valid where vLLM for CUDA is installed, and incomplete elsewhere."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    result = CliRunner().invoke(main, ["certify", "--seconds", "300"])
    print(result.output, f"{time.monotonic() - started:.0f} s")
    status = certificate.read()
    if software.version("vllm"):
        assert (result.exit_code, status.state) == (0, "valid"), result.output
        assert certificate.decoder() in ("lowp", "flashinfer")
    else:
        assert (result.exit_code, status.state) == (ENVIRONMENT, "incomplete"), result.output
