"""The methods that vLLM adds to its workers, with vLLM's own worker classes."""

import pytest
import torch

pytest.importorskip("vllm")
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.worker.cpu_worker import CPUWorker

from bench.engine.engines import WORKER
from bench.engine.inside.worker import BenchWorker


def test_vllm_finds_the_extension():
    assert resolve_obj_by_qualname(WORKER) is BenchWorker


def test_no_method_is_vllms_own():
    """vLLM refuses an extension that hides a method of its worker."""
    methods = {name for name in vars(BenchWorker) if not name.startswith("__")}
    assert methods and not any(hasattr(CPUWorker, name) for name in methods)


def test_operators_between_start_and_stop_are_recorded():
    worker = BenchWorker()
    worker.start_kernels()
    torch.ones(8, 8) @ torch.ones(8, 8)
    recorded = {name: (count, us) for name, count, us in worker.stop_kernels()}
    count, us = recorded["aten::mm"]
    assert count == 1 and us > 0
