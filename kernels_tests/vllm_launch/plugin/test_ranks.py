"""Which engines have two ranks, and how tests reach their workers; no engine is started."""

import os

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import torch
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker

from kernels_tests.vllm_launch.plugin import cpu_rank, engines, tiny_model
from kernels_tests.vllm_launch.plugin.ranks import RankChecks


def test_engines_with_ranks_run_where_they_are_named_alone():
    assert {name for name, engine in engines.ENGINES.items() if engine.ranks > 1} == {
        *("stock-bf16-tp2", "bf16-tp2", "fp8-tp2", "int8-tp2")
    }
    assert not any(name.endswith("-tp2") for name in engines.SINGLE_RANK)
    references = {entry.candidate: entry.reference for entry in tiny_model.COMPARISONS}
    assert references["fp8-tp2"] == references["bf16-tp2"] == "stock-bf16-tp2" and references["int8-tp2"] == "bf16-tp2"


@pytest.mark.parametrize(
    ("name", "base"), [(engines.CPU_RANK, CPUWorker), (engines.GPU_RANK, Worker), (engines.RANK_CHECKS, RankChecks)]
)
def test_vllm_finds_the_classes_by_name(name, base):
    assert issubclass(resolve_obj_by_qualname(name), base)


def test_a_rank_on_a_cpu_registers_our_backend_before_vllms_worker_starts(monkeypatch):
    steps = []
    monkeypatch.setattr(cpu_rank, "register_cpu_backend", lambda is_ours: steps.append(("register", is_ours)))
    monkeypatch.setattr(CPUWorker, "__init__", lambda _self, **settings: steps.append(("worker", settings)))
    cpu_rank.CpuRank(rank=1)
    assert steps == [("register", True), ("worker", {"rank": 1})]


def test_no_method_is_vllms_own():
    """vLLM refuses an extension that hides a method of its worker."""
    methods = {name for name in vars(RankChecks) if not name.startswith("__")}
    assert methods and not any(hasattr(CPUWorker, name) for name in methods)


def test_every_byte_of_a_ranks_cache_is_nan():
    worker, cache = RankChecks(), torch.zeros(4, 8, dtype=torch.bfloat16)
    worker.model_runner = type("Runner", (), {"kv_caches": [cache], "requests": {"a": None}})
    worker.fill_cache_with_nan()
    assert cache.isnan().all() and cache.view(torch.float8_e4m3fn).float().isnan().all()
    assert worker.runner_requests() == 1 and worker.rank_memory()["pid"] == os.getpid()
