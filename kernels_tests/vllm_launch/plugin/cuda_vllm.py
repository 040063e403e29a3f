"""vLLM as on an H200, in a process without a GPU: empty extension modules, and a made CUDA platform.

Import it before vLLM, in a process of its own. The rest of vLLM is real: registry, selection, config, layers, builders.
"""

import importlib.abc
import importlib.machinery
import sys
import types

import torch

QUERIES = (  # of kernels that the GPU supports, asked at import
    "cutlass_scaled_mm_supports_fp8",
    "cutlass_scaled_mm_supports_block_fp8",
    "cutlass_scaled_mm_supports_fp4",
    "cutlass_group_gemm_supported",
)


class EmptyExtensions(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds vLLM's compiled modules, with nothing in them."""

    def find_spec(self, name, path=None, target=None):
        last = name.rpartition(".")[2]
        is_extension = name.startswith("vllm.") and last.startswith("_") and "_C" in last
        return importlib.machinery.ModuleSpec(name, self) if is_extension else None

    def create_module(self, spec):
        return types.ModuleType(spec.name)

    def exec_module(self, module):
        pass


def install(capability: tuple[int, int] = (9, 0)) -> None:
    """Make vLLM take this machine for one with an H200."""
    sys.meta_path.insert(0, EmptyExtensions())
    for query in QUERIES:
        setattr(torch.ops._C, query, lambda *_: False)
    import vllm.platforms
    from vllm.platforms import cuda
    from vllm.platforms.interface import DeviceCapability
    from vllm.triton_utils import HAS_TRITON, triton

    if not HAS_TRITON:  # kernels that are never run list their configurations at import
        triton.Config = lambda kwargs, **options: types.SimpleNamespace(kwargs=kwargs, **options)

    class MadeCuda(cuda.NonNvmlCudaPlatform):
        @classmethod
        def get_device_capability(cls, device_id=0):
            return DeviceCapability(*capability)

        @classmethod
        def get_device_name(cls, device_id=0):
            return "NVIDIA H200"

        @classmethod
        def get_device_total_memory(cls, device_id=0):
            return 141 * 2**30

        @classmethod
        def device_count(cls):
            return 1

    vllm.platforms._current_platform = MadeCuda()
