"""The plugin shortens a server's cold start."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")
from vllm.platforms import current_platform

from vllm_launch import plugin


def test_on_a_cpu_vllm_starts_no_process_to_inspect_the_model(monkeypatch, tmp_path):
    if not current_platform.is_cpu():
        pytest.skip("vLLM here is not the CPU build")
    from vllm.model_executor.models import registry

    def no_process(*_):
        raise AssertionError("vLLM started a process to inspect the model")

    monkeypatch.setattr(registry, "_run_in_subprocess", no_process)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    monkeypatch.setenv("FP8_SINKS_PLUGIN", "1")
    monkeypatch.setattr(plugin, "sleep_instead_of_spinning", lambda: None)
    plugin.register()
    info = registry.ModelRegistry.models["TinyGptOssForCausalLM"].inspect_model_cls()
    assert info.architecture == "GptOssForCausalLM" and info.is_text_generation_model
