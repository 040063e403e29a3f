"""Our vLLM plugin; vLLM calls `register` through the entry point group `vllm.general_plugins` in each of its processes.

Imports nothing heavy at the top: vLLM loads plugins before it knows what a process will do.
"""

import os
import time
from collections.abc import Mapping

from vllm_launch.decoder.contract import PLUGIN

SPIN_SLEEP_S = 50e-6
CUDA_BACKEND = "vllm_launch.plugin.attention.installed.SinkBackend"
CPU_ATTENTION = "FP8_SINKS_CPU_ATTENTION"  # environment variable that names one of CPU_BACKENDS, for tests
CPU_BACKENDS = {
    "native": "vllm_launch.plugin.cpu_cache.RoundingCpuBackend",  # vLLM's FP8 kernels read the cache
    "widened": "vllm_launch.plugin.cpu_widen.WideningCpuBackend",  # its kernels for the model's dtype
}


def register() -> None:
    """Register the tiny model's alias and our attention backend; on a CPU also sleep instead of spinning.

    Does nothing unless FP8_SINKS_PLUGIN is set. On CUDA the backend is CUSTOM, imported when it is chosen.
    """
    if not os.environ.get(PLUGIN):
        return
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.platforms import current_platform

    model = "vllm.model_executor.models.gpt_oss:GptOssForCausalLM"
    if current_platform.is_cpu():
        # The class itself: to inspect a class given by name, vLLM starts a process if its caches are empty.
        from vllm.model_executor.models.gpt_oss import GptOssForCausalLM as model
        from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

        register_backend(AttentionBackendEnum.CPU_ATTN, CPU_BACKENDS[cpu_attention()])
        sleep_instead_of_spinning()
    elif current_platform.is_cuda():
        register_custom()
    # Same model class; another name and model_type, so that vLLM does not force gpt-oss's chat format on it.
    ModelRegistry.register_model("TinyGptOssForCausalLM", model)


def register_custom() -> None:
    """Register our backend as CUSTOM. Raises RuntimeError if another plugin has registered its own."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    custom = AttentionBackendEnum.CUSTOM
    if custom.is_overridden() and custom.get_path() != CUDA_BACKEND:
        raise RuntimeError(
            f"attention backend CUSTOM is {custom.get_path()}, of another plugin; expected {CUDA_BACKEND}: "
            f"unset {PLUGIN}, or leave that plugin out of VLLM_PLUGINS"
        )
    register_backend(custom, CUDA_BACKEND)


def requested_cpu_attention(environment: Mapping[str, str]) -> str | None:
    """The value of CPU_ATTENTION in `environment`, None if unset; raises ValueError unless it is in CPU_BACKENDS."""
    name = environment.get(CPU_ATTENTION) or None
    if name not in (None, *CPU_BACKENDS):
        raise ValueError(f"{CPU_ATTENTION}={name}: expected {' or '.join(CPU_BACKENDS)}")
    return name


def cpu_attention() -> str:
    """The key of CPU_BACKENDS for this process: as requested, else native if vLLM has FP8 kernels for this CPU."""
    from torch import cpu

    # As vLLM's _get_attn_isa decides (v1/attention/backends/cpu_attn.py).
    has_fp8_kernels = cpu._is_amx_tile_supported() or cpu._is_avx512_supported()
    return requested_cpu_attention(os.environ) or ("native" if has_fp8_kernels else "widened")


def sleep_instead_of_spinning() -> None:
    """Make the engine sleep for 50 us at a time while its worker computes, instead of yielding in a loop.

    vLLM's engine spins on `sched_yield` in every step. With few cores, Linux then starves other processes for whole
    requests: a client received all 64 tokens of a stream at once, 0.3 s late (6 of 100 requests on 2 cores under Linux
    6.18; none with the sleep), which makes decode rates unmeasurable.
    """
    from vllm.distributed.device_communicators import shm_broadcast

    shm_broadcast.sched_yield = lambda: time.sleep(SPIN_SLEEP_S)
