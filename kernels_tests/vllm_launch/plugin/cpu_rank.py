"""A worker of a CPU in a process of its own, with `cpu_backend`."""

from vllm.v1.worker.cpu_worker import CPUWorker

from kernels_tests.vllm_launch.plugin.engines import register_cpu_backend


class CpuRank(CPUWorker):
    """vLLM's worker; vLLM spawns it, so that it has nothing of the engine's process."""

    def __init__(self, *arguments, **settings):
        register_cpu_backend(is_ours=True)
        super().__init__(*arguments, **settings)
