"""The linear layers alone: what runs on this machine is timed, what does not says why."""

import pytest

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
