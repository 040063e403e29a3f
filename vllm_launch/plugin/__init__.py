"""What our launcher changes inside vLLM; entry point group `vllm.general_plugins`, loaded in every process of it.

Imports nothing heavy here: vLLM calls `register` in each process, before it knows what the process will do.
"""

import os


def register() -> None:
    """Register the tiny model's alias, and on a CPU the rounding cache writer. Does nothing in a foreign vLLM."""
    if not os.environ.get("FP8_SINKS_PLUGIN"):
        return
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.platforms import current_platform

    # Same model class; another name and model_type, so that vLLM does not force gpt-oss's chat format on it.
    ModelRegistry.register_model("TinyGptOssForCausalLM", "vllm.model_executor.models.gpt_oss:GptOssForCausalLM")
    if current_platform.is_cpu():
        from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

        register_backend(AttentionBackendEnum.CPU_ATTN, "vllm_launch.plugin.cpu_cache.RoundingCpuBackend")
