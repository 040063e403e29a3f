"""The linear layers alone: what runs on this machine is timed, what does not says why."""

import pytest
import torch

from bench.rollout import linears
from bench.rollout.result import LinearRow
from kernels_tests.lowp.mx_models import needs_torchao


@pytest.fixture
def rows(monkeypatch) -> list[LinearRow]:
    monkeypatch.setattr(linears, "SHAPES", {"D x 4D": (64, 256)})
    monkeypatch.setattr(linears, "TOKENS", {"cpu": (16, 32)})
    monkeypatch.setattr(linears, "CALLS", 3)
    kernels = {"bf16": None, "float8-row": (8, "float8-row"), "emulated": (8, "emulated")}
    monkeypatch.setattr(linears, "KERNELS", kernels)
    return linears.measure("cpu")


@needs_torchao
def test_every_size_is_timed_or_refused(rows):
    assert [(row.kernel, row.tokens) for row in rows] == [
        (kernel, tokens) for kernel in ("bf16", "float8-row", "emulated") for tokens in (16, 32)
    ]
    for row in rows:
        assert bool(row.ms) is (row.kernel != "float8-row") is not bool(row.error)
        assert (row.sqnr is not None and 20 < row.sqnr < 40) is (row.kernel == "emulated")


def test_every_layer_and_size_has_a_static_graph_of_its_own(monkeypatch):
    """More layers than torch keeps graphs of one function: none runs eagerly, none with dynamic shapes."""
    shapes, compile_ = [], torch.compile

    def backend(graph, inputs):
        shapes.append([size for x in inputs for size in x.shape])
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda layer, **options: compile_(layer, backend=backend, **options))
    layers = torch._dynamo.config.recompile_limit + 1
    for number in range(layers):
        run = linears.compiled(linears.Layer(8, 8 * (number + 1), "cpu"))
        for tokens in (2, 4, 16):
            run(torch.ones(tokens, 8, dtype=torch.bfloat16))
    assert len(shapes) == 3 * layers
    assert all(isinstance(size, int) for graph in shapes for size in graph)
