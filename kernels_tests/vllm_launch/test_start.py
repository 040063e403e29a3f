"""What makes a server's start shorter: no process only to look at the model, and no garbage collection meanwhile."""

import gc
import importlib

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")
from vllm.platforms import current_platform

from vllm_launch import plugin

MODEL = "TinyGptOssForCausalLM"


def test_on_a_cpu_vllm_starts_no_process_to_look_at_the_model(monkeypatch, tmp_path):
    if not current_platform.is_cpu():
        pytest.skip("vLLM here is not the CPU build")
    from vllm.model_executor.models import registry

    def no_process(*_):
        raise AssertionError("a process was started to look at the model")

    monkeypatch.setattr(registry, "_run_in_subprocess", no_process)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    monkeypatch.setenv("FP8_SINKS_PLUGIN", "1")
    monkeypatch.setattr(plugin, "sleep_instead_of_spinning", lambda: None)
    plugin.register()
    info = registry.ModelRegistry.models[MODEL].inspect_model_cls()
    assert info.architecture == "GptOssForCausalLM" and info.is_text_generation_model


def test_nothing_is_collected_until_the_plugin_is_loaded(monkeypatch):
    """vLLM's processes run our module by another name, then import vLLM, then load plugins."""
    monkeypatch.delenv("FP8_SINKS_PLUGIN", raising=False)
    try:
        importlib.import_module("vllm_launch.plugin.api_server")
        assert not gc.isenabled()
        plugin.register()
        assert gc.isenabled()
    finally:
        gc.enable()
