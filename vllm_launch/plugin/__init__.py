"""What our launcher changes inside vLLM; entry point group `vllm.general_plugins`, loaded in every process of it.

Nothing heavy is imported here: vLLM calls `register` in each process, before it knows what the process will do.
"""

import os
import time

SPIN_SLEEP_S = 50e-6


def register() -> None:
    """Register the tiny model's alias; on a CPU also the rounding cache writer and a wait that leaves others the CPU.

    Does nothing in a vLLM that our launcher did not start.
    """
    if not os.environ.get("FP8_SINKS_PLUGIN"):
        return
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.platforms import current_platform

    # Same model class; another name and model_type, so that vLLM does not force gpt-oss's chat format on it.
    ModelRegistry.register_model("TinyGptOssForCausalLM", "vllm.model_executor.models.gpt_oss:GptOssForCausalLM")
    if current_platform.is_cpu():
        from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

        register_backend(AttentionBackendEnum.CPU_ATTN, "vllm_launch.plugin.cpu_cache.RoundingCpuBackend")
        sleep_instead_of_spinning()


def sleep_instead_of_spinning() -> None:
    """Let the engine sleep 50 us at a time while its worker computes, instead of yielding in a loop.

    vLLM's engine spins on `sched_yield` for every step. On a machine of few cores Linux then starved other processes
    for the length of whole requests: a client got all 64 tokens of a stream at once, 0.3 s late (6 in 100 requests
    on 2 cores under Linux 6.18; none with the sleep), and no decode rate can be measured from that.
    """
    from vllm.distributed.device_communicators import shm_broadcast

    shm_broadcast.sched_yield = lambda: time.sleep(SPIN_SLEEP_S)
