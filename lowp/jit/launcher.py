"""Load a compiled kernel into a GPU and launch it."""

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lowp.jit.driver import bindings, checked


@dataclass(frozen=True)
class Kernel:
    """A loaded kernel: its CUfunction, the threads of a CTA and the bytes of its dynamic shared memory."""

    function: object
    threads: int
    shared_bytes: int


def load(cubin: bytes, name: str, threads: int, shared_bytes: int) -> Kernel:
    """Load the kernel `name` into the current context, allowed to use that much shared memory."""
    driver = bindings("driver")
    module = checked(driver, driver.cuModuleLoadData(cubin))
    function = checked(driver, driver.cuModuleGetFunction(module, name.encode()))
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    checked(driver, driver.cuFuncSetAttribute(function, attribute, shared_bytes))
    return Kernel(function, threads, shared_bytes)


def launch(
    kernel: Kernel, grid: tuple[int, int, int], params: ctypes.Structure, cluster: int = 1, overlap: bool = False
) -> None:
    """Launch on torch's current stream; params: the kernel's only parameter.

    cluster: CTAs of a cluster, along the grid's y axis. overlap: the kernel may start before the previous one on the
    stream has ended; it waits for that itself.
    """
    driver = bindings("driver")
    stream = torch.cuda.current_stream().cuda_stream
    config = _launch_config(grid, kernel.threads, kernel.shared_bytes, cluster, overlap, stream)
    addresses = (ctypes.c_void_p * 1)(ctypes.addressof(params))
    checked(driver, driver.cuLaunchKernelEx(config, kernel.function, ctypes.addressof(addresses), 0))


@functools.lru_cache(maxsize=4096)
def _launch_config(grid, threads, shared_bytes, cluster, overlap, stream):
    """Make a CUlaunchConfig. One object per stream, never changed: threads may launch at the same time."""
    driver = bindings("driver")
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
    config.sharedMemBytes = shared_bytes
    config.hStream = driver.CUstream(stream)
    attributes = []
    if cluster > 1:
        shape, balance = driver.CUlaunchAttribute(), driver.CUlaunchAttribute()
        shape.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        shape.value.clusterDim.x, shape.value.clusterDim.y, shape.value.clusterDim.z = 1, cluster, 1
        # Without it not all clusters are resident at once where they fill the device (LOG.md of sink_decode, 25).
        balance.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE
        by_load = driver.CUclusterSchedulingPolicy.CU_CLUSTER_SCHEDULING_POLICY_LOAD_BALANCING
        balance.value.clusterSchedulingPolicyPreference = by_load
        attributes += [shape, balance]
    if overlap:
        dependent = driver.CUlaunchAttribute()
        dependent.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        dependent.value.programmaticStreamSerializationAllowed = 1
        attributes.append(dependent)
    config.attrs, config.numAttrs = attributes, len(attributes)
    return config


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Run a call, which loads its kernel, and capture it in a CUDA graph."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph
