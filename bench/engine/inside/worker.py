"""What the bench does in each of vLLM's workers, by name: vLLM adds `BenchWorker` to its own worker class.

`collective_rpc("fill_cache")` calls the method in every rank, whether the worker lives in the calling process or, with
tensor parallelism, in one of its own. No function is sent.
"""

import torch
from torch.profiler import ProfilerActivity, profile

from bench.engine.inside import weights


class BenchWorker:
    """Extension of vLLM's worker (`worker_extension_cls`)."""

    def describe_engine(self) -> dict:
        return weights.describe(self)

    def spread_routing(self) -> int:
        return weights.spread_routing(self)

    def fill_cache(self, kv_format: str) -> int:
        return weights.fill_cache(self, kv_format)

    def wait_for_device(self) -> None:
        """Wait for the device; on a CPU all work is done by then."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def start_kernels(self) -> None:
        """Start to record this rank's kernels; on a CPU torch's operators."""
        on_gpu = torch.cuda.is_available()
        self.kernel_profile = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])
        self.kernel_profile.start()

    def stop_kernels(self) -> list[tuple[str, int, float]]:
        """Stop the recording; returns each kernel's name, number of calls and microseconds."""
        self.wait_for_device()
        self.kernel_profile.stop()
        on_gpu = torch.cuda.is_available()
        return [
            (event.key, event.count, event.self_device_time_total if on_gpu else event.self_cpu_time_total)
            for event in self.kernel_profile.key_averages()
        ]
