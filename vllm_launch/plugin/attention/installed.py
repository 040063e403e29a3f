"""The backend class for the installed vLLM. vLLM imports this module when CUSTOM is chosen, and not before."""

import importlib

import vllm

from flashinfer_patches.errors import Problem
from vllm_launch.decoder.contract import VLLM_RELEASES


def load_backend(version: str) -> type:
    """Return the backend class for a vLLM version.

    Raises Problem for a version without an adapter. An adapter that cannot be imported raises RuntimeError, since vLLM
    takes an ImportError for a backend that is not available and drops its message.
    """
    release = ".".join(version.split(".")[:2])
    if release not in VLLM_RELEASES:
        raise Problem(
            "software",
            f"vLLM {version}: the attention backend of fp8-sinks supports {', '.join(VLLM_RELEASES)}",
            "install a supported vLLM, or serve without --attention-backend CUSTOM",
        )
    try:
        return importlib.import_module(f"{__package__}.vllm_{release.replace('.', '_')}").SinkBackend
    except ImportError as error:
        raise RuntimeError(f"cannot import the attention backend of fp8-sinks for vLLM {version}: {error}") from error


SinkBackend = load_backend(vllm.__version__)
