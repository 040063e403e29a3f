"""What our launcher changes inside vLLM; entry point group `vllm.general_plugins`, loaded in every process of it.

Nothing heavy is imported at the top: vLLM calls `register` in each process, before it knows what the process will do.
"""

import os
import time
from collections.abc import Mapping

SPIN_SLEEP_S = 50e-6
CPU_ATTENTION = "FP8_SINKS_CPU_ATTENTION"  # an environment variable: one of CPU_BACKENDS, for tests
CPU_BACKENDS = {
    "native": "vllm_launch.plugin.cpu_cache.RoundingCpuBackend",  # vLLM's own FP8 kernels read the FP8 cache
    "widened": "vllm_launch.plugin.cpu_widen.WideningCpuBackend",  # its kernels for the model's dtype do
}


def register() -> None:
    """Register the tiny model's alias; on a CPU also our cache writer and attention, and a wait that yields the CPU.

    Does nothing in a vLLM that our launcher did not start.
    """
    if not os.environ.get("FP8_SINKS_PLUGIN"):
        return
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.platforms import current_platform

    model = "vllm.model_executor.models.gpt_oss:GptOssForCausalLM"
    if current_platform.is_cpu():
        # The class itself: to look at one that is only named, vLLM starts a process when its caches are empty.
        from vllm.model_executor.models.gpt_oss import GptOssForCausalLM as model
        from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

        register_backend(AttentionBackendEnum.CPU_ATTN, CPU_BACKENDS[cpu_attention()])
        sleep_instead_of_spinning()
    # Same model class; another name and model_type, so that vLLM does not force gpt-oss's chat format on it.
    ModelRegistry.register_model("TinyGptOssForCausalLM", model)


def asked_cpu_attention(environment: Mapping[str, str]) -> str | None:
    """The CPU attention that `environment` asks for by CPU_ATTENTION, None if it does not; ValueError for another."""
    asked = environment.get(CPU_ATTENTION) or None
    if asked not in (None, *CPU_BACKENDS):
        raise ValueError(f"{CPU_ATTENTION}={asked}: expected {' or '.join(CPU_BACKENDS)}")
    return asked


def cpu_attention() -> str:
    """The key of CPU_BACKENDS for this process: as asked, else native where vLLM has FP8 kernels for this CPU."""
    from torch import cpu

    # The question of vLLM's _get_attn_isa (v1/attention/backends/cpu_attn.py).
    has_fp8_kernels = cpu._is_amx_tile_supported() or cpu._is_avx512_supported()
    return asked_cpu_attention(os.environ) or ("native" if has_fp8_kernels else "widened")


def sleep_instead_of_spinning() -> None:
    """Let the engine sleep 50 us at a time while its worker computes, instead of yielding in a loop.

    vLLM's engine spins on `sched_yield` for every step. On a machine of few cores Linux then starved other processes
    for the length of whole requests: a client got all 64 tokens of a stream at once, 0.3 s late (6 in 100 requests
    on 2 cores under Linux 6.18; none with the sleep), and no decode rate can be measured from that.
    """
    from vllm.distributed.device_communicators import shm_broadcast

    shm_broadcast.sched_yield = lambda: time.sleep(SPIN_SLEEP_S)
