"""The backend class for the installed vLLM. vLLM imports this module when CUSTOM is chosen, and not before."""

import importlib

import vllm

from flashinfer_patches.errors import Problem

ADAPTERS = {(0, 26): "vllm_0_26", (0, 33): "vllm_0_33"}


def load_backend(version: str) -> type:
    """Return the backend class for a vLLM version.

    Raises Problem for a version without an adapter. An adapter that cannot be imported raises RuntimeError, since vLLM
    takes an ImportError for a backend that is not available and drops its message.
    """
    release = tuple(int(part) if part.isdigit() else -1 for part in version.split(".")[:2])
    if release not in ADAPTERS:
        supported = ", ".join(f"{major}.{minor}" for major, minor in ADAPTERS)
        raise Problem(
            "software",
            f"vLLM {version}: the attention backend of fp8-sinks supports {supported}",
            "install a supported vLLM, or serve without --attention-backend CUSTOM",
        )
    try:
        return importlib.import_module(f"{__package__}.{ADAPTERS[release]}").SinkBackend
    except ImportError as error:
        raise RuntimeError(f"cannot import the attention backend of fp8-sinks for vLLM {version}: {error}") from error


SinkBackend = load_backend(vllm.__version__)
