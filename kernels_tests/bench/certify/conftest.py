"""A pretended GPU, on which speed, graphs and gate pass; the kernels' checks are real, on the CPU."""

from types import SimpleNamespace

import pytest
import torch

from bench.certify import cases, correctness, gate, run, speed
from bench.certify.correctness import Kernels
from bench.certify.speed import Speed
from kernels_tests.vllm_launch.certificates import KEY
from vllm_launch import certificate, machine
from vllm_launch.certificate import Check, Timing


def a_timing(decoder="lowp", shape=speed.SHAPES[-1], us=65.0):
    return Timing(decoder=decoder, shape=shape, time_us=us, fraction=0.9, rel_l2=1.7e-3)


@pytest.fixture(autouse=True)
def single_thread():
    """Small tensors are faster on one thread, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """What the checks answer; a test may change it. `served`: decoders that the gate was run with."""
    timings = [a_timing(shape=shape) for shape in speed.SHAPES]
    answers = SimpleNamespace(
        speed=lambda: Speed(Check(name="speed", verdict="passed", detail="90%"), 4.4e12, timings),
        graph=lambda: Check(name="graph", verdict="passed", detail="3 cases"),
        gate=lambda: Check(name="gate", verdict="passed", detail="mean |Δ log p| 0.046"),
        obstacle=None,
        kernels=Kernels(),
        served=[],
    )

    class Started:
        def __init__(self, plans, folder, watch):
            answers.served += plans

        def __enter__(self):
            return answers.gate

        def __exit__(self, *_):
            answers.served.append("ended")

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(machine, "capability_and_cuda", lambda: ("9.0", (13, 0)))
    monkeypatch.setattr(certificate, "current_key", lambda: KEY)
    monkeypatch.setattr(speed, "check", lambda display, watch: answers.speed())
    monkeypatch.setattr(correctness, "check_graphs", lambda kernels, watch: answers.graph())
    monkeypatch.setattr(gate, "obstacle", lambda folder, decoder: answers.obstacle)
    monkeypatch.setattr(gate, "plan_servers", lambda decoder: [decoder])
    monkeypatch.setattr(gate, "started", Started)
    for name in ("decode_cases", "write_cases", "read_cases"):
        few = dict(list(getattr(cases, name)().items())[:2])
        monkeypatch.setattr(cases, name, lambda few=few: few)
    request = run.Request
    monkeypatch.setattr(run, "Request", lambda folder, seconds: request(folder, seconds, answers.kernels, "cpu"))
    return answers
