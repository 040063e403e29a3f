"""Loads vLLM's plugins under several environments, on a made CUDA platform; prints what CUSTOM is then, as JSON."""

import json
import multiprocessing
import os
import sys

from kernels_tests.vllm_launch.plugin import cuda_vllm

CASES = {
    "variable": {"FP8_SINKS_PLUGIN": "1"},
    "no variable": {},
    "allowed": {"FP8_SINKS_PLUGIN": "1", "VLLM_PLUGINS": "fp8_sinks"},
    "among others": {"FP8_SINKS_PLUGIN": "1", "VLLM_PLUGINS": "other,fp8_sinks"},
    "not allowed": {"FP8_SINKS_PLUGIN": "1", "VLLM_PLUGINS": "other"},
    "none allowed": {"FP8_SINKS_PLUGIN": "1", "VLLM_PLUGINS": ""},
}


def load(environment: dict[str, str], repeats: int = 0) -> str | None:
    """Load the plugins as vLLM does; return the path of CUSTOM's class, None if it has none."""
    for name in ("FP8_SINKS_PLUGIN", "VLLM_PLUGINS"):
        os.environ.pop(name, None)
    os.environ |= environment
    from vllm import plugins
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    AttentionBackendEnum.CUSTOM.clear_override()
    for _ in range(1 + repeats):
        plugins.plugins_loaded = False
        plugins.load_general_plugins()
    custom = AttentionBackendEnum.CUSTOM
    return custom.get_path() if custom.is_overridden() else None


def child(results) -> None:
    """In a spawned process: what a worker of vLLM does. The environment is the parent's."""
    cuda_vllm.install()
    results.put(load({name: os.environ[name] for name in ("FP8_SINKS_PLUGIN",)}))


def error(action) -> str:
    try:
        action()
    except Exception as error:  # whatever a server would end with
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    cuda_vllm.install()
    import vllm
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    custom = AttentionBackendEnum.CUSTOM
    results = {name: load(environment) for name, environment in CASES.items()}
    results["twice"] = load(CASES["variable"], repeats=1)
    results["version"] = vllm.__version__
    results["unsupported version"] = error(custom.get_class)

    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=child, args=(queue,))
    worker.start()
    results["spawned"] = queue.get(timeout=120)
    worker.join()

    vllm.__version__ = "0.33.0"
    sys.modules["lowp.cache_write"] = None  # what a broken installation does: an ImportError
    results["import error"] = error(custom.get_class)
    register_backend(custom, "other.Backend")
    from vllm_launch import plugin

    results["another plugin's"] = error(plugin.register)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
