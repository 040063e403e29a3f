"""A worker of a GPU in a process of its own: with our backend, and memory full of NaN."""

from vllm.v1.worker.gpu_worker import Worker

from kernels_tests.vllm_launch.plugin.engines import fill_memory_with_nan
from vllm_launch import plugin


class GpuRank(Worker):
    """vLLM's worker; vLLM spawns it, so that it has nothing of the engine's process."""

    def __init__(self, *arguments, **settings):
        plugin.register()
        super().__init__(*arguments, **settings)

    def init_device(self):
        super().init_device()
        fill_memory_with_nan()
