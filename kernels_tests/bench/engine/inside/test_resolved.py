"""What an engine's ranks report is checked before anything is measured."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from bench.engine.inside import process
from bench.engine.variants import BASE

RANK = {"runner": "vllm.v1.worker.gpu_model_runner", "backends": ["FLASH_ATTN"], "cache_bytes": [2]}


@pytest.mark.parametrize(
    "workers",
    [[RANK], [RANK] * 3, [RANK, RANK | {"backends": ["TRITON_ATTN"]}], [RANK, RANK | {"cache_bytes": [1]}]],
    ids=["a rank is missing", "a rank too many", "another backend", "another cache"],
)
def test_ranks_that_disagree_or_are_missing_end_the_start(workers):
    engine = SimpleNamespace(
        collective_rpc=lambda _method: workers, llm_engine=SimpleNamespace(vllm_config=SimpleNamespace())
    )
    task = SimpleNamespace(labels={"tensor_parallel": 2}, variant=BASE)
    with pytest.raises(RuntimeError, match="workers: expected"):
        process.resolved(engine, task)
