"""The soak of an engine on a CPU that is wrong in one way, which the variable MUTANT names."""

import os
import sys

from kernels_tests.vllm_launch.plugin import soak

MUTANT = "FP8_SINKS_SOAK_MUTANT"


def swap_rows() -> None:
    """Steps that decode several requests give the first two each other's attention."""
    from kernels_tests.vllm_launch.plugin.cpu_backend import SinkImpl

    right = SinkImpl.forward

    def forward(self, layer, query, key, value, kv_cache, metadata, output, **scales):
        right(self, layer, query, key, value, kv_cache, metadata, output, **scales)
        if metadata is not None and metadata.decodes is not None and metadata.decodes.rows > 1:
            output[:2] = output[:2].flip(0)
        return output

    SinkImpl.forward = forward


def give_nan() -> None:
    """Steps that decode more than three requests give NaN to the first."""
    from kernels_tests.vllm_launch.plugin.cpu_backend import SinkImpl

    right = SinkImpl.forward

    def forward(self, layer, query, key, value, kv_cache, metadata, output, **scales):
        right(self, layer, query, key, value, kv_cache, metadata, output, **scales)
        if metadata is not None and metadata.decodes is not None and metadata.decodes.rows > 3:
            output[0] = float("nan")
        return output

    SinkImpl.forward = forward


def forget_aborts() -> None:
    """The engine's core does not hear of aborted requests."""
    from vllm.v1.engine.core_client import InprocClient

    InprocClient.abort_requests = lambda self, names: None


def keep_blocks() -> None:
    """The blocks of the first request that ends after it was preempted are not freed."""
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    right, leaked = KVCacheManager.free, []

    def free(self, request):
        if request.is_finished() and request.num_preemptions and not leaked:
            leaked.append(request)
        else:
            right(self, request)

    KVCacheManager.free = free


MUTANTS = {"rows": swap_rows, "nan": give_nan, "aborts": forget_aborts, "blocks": keep_blocks}

if __name__ == "__main__":
    if "--serve" in sys.argv:
        MUTANTS[os.environ[MUTANT]]()
    sys.exit(soak.main())
