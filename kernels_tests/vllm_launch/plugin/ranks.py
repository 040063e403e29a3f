"""What the tests do in each rank of an engine, by name: vLLM adds `RankChecks` to its worker class.

With tensor parallelism a rank is a process of its own, and has its own cache, memory and model runner.
"""

import gc
import os

import psutil
import torch

from kernels_tests.vllm_launch.plugin.engines import NAN_BYTE


class RankChecks:
    """Extension of vLLM's worker (`worker_extension_cls`)."""

    def fill_cache_with_nan(self) -> None:
        """Fill every byte of the KV cache with NaN."""
        for cache in self.model_runner.kv_caches:
            storage = cache.untyped_storage()
            torch.empty(0, dtype=torch.uint8, device=cache.device).set_(storage).fill_(NAN_BYTE)

    def runner_requests(self) -> int:
        """Requests that the model runner holds: V1 keeps them in `requests`, V2 in `req_states`."""
        runner = self.model_runner
        return len(runner.req_states.req_id_to_index if hasattr(runner, "req_states") else runner.requests)

    def rank_memory(self) -> dict[str, int]:
        """Process id and RSS, and on a GPU the bytes of torch's allocator."""
        gc.collect()
        held = {"pid": os.getpid(), "RSS": psutil.Process().memory_info().rss}
        if torch.cuda.is_available():
            held |= {"GPU allocated": torch.cuda.memory_allocated(), "GPU reserved": torch.cuda.memory_reserved()}
        return held
