"""From the kernel's sources to a loaded function: NVRTC, once per machine and configuration, under one cache folder."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from lowp import kernel_cache
from lowp.sink_decode.heuristic import Launch, Problem, shared_bytes

SOURCES = ("kernel.cu", "config.cuh", "ptx.cuh", "split.cuh", "load.cuh", "query.cuh", "step.cuh", "merge.cuh")
HERE = Path(__file__).parent
REMEDY = "install NVRTC and its bindings: pip install 'cuda-bindings>=13' 'nvidia-cuda-nvrtc>=13'"


@dataclass(frozen=True)
class Config:
    """One build of the kernel; arch as nvcc names it (sm_90a)."""

    arch: str
    problem: Problem
    launch: Launch

    @property
    def shared_bytes(self) -> int:
        return shared_bytes(self.problem, self.launch)

    @property
    def defines(self) -> dict[str, int]:
        """The macros that config.cuh expects."""
        problem, launch = self.problem, self.launch
        return {
            "HEAD_DIM": problem.head_dim,
            "QUERY_BF16": int(problem.query_bf16),
            "KV_E4M3": int(problem.kv_dtype == torch.float8_e4m3fn),
            "KV_INT8": int(problem.kv_dtype == torch.int8),
            "KV_BF16": int(problem.kv_dtype == torch.bfloat16),
            "QUERY_TOKENS": problem.query_tokens,
            "GROUP_TILES": problem.group_tiles,
            "TOKEN_SCALES": int(problem.token_scales),
            "CHANNEL_SCALES": int(problem.channel_scales),
            "WINDOW": int(problem.window),
            "INTERLEAVED": int(problem.interleaved),
            "WARPS": launch.warps,
            "STAGES": launch.stages,
            "TILES": launch.tiles,
            "CLUSTER": launch.cluster,
            "MIN_CTAS": launch.min_ctas,
            "EARLY": int(launch.early),
            "SHARED_BYTES": self.shared_bytes,
        }


def cubin(config: Config) -> bytes:
    """The compiled kernel, from the cache or built now, under a second. Processes that build the same do it each.

    Raises RuntimeError where there is no NVRTC, the build fails, or the folder cannot be written, is another user's or
    writable by others.
    """
    nvrtc = _bindings("nvrtc")
    options = ["-std=c++17", f"-arch={config.arch}", *(f"-D{name}={value}" for name, value in config.defines.items())]
    _, *version = nvrtc.nvrtcVersion()  # major, minor
    if version >= [12, 9]:
        options.append("--no-cache")  # else it may answer from the driver's cache, which is not the one that we empty
    content = repr((version, options)).encode() + b"".join((HERE / name).read_bytes() for name in SOURCES)
    path = kernel_cache.root() / "sink_decode" / f"{hashlib.sha256(content).hexdigest()[:32]}.cubin"
    try:
        kernel = kernel_cache.load(path)
        if kernel is None:
            kernel = compile_nvrtc(options)[0]
            kernel_cache.store(path, kernel)
    except OSError as error:
        raise RuntimeError(
            f"{error.filename or path} cannot be read or written: {error.strerror}; expected a folder for compiled "
            f"kernels, with space: name one by {kernel_cache.VARIABLE}"
        ) from error
    return kernel


def compile_nvrtc(options: list[str]) -> tuple[bytes, str]:
    """The cubin of kernel.cu, and the compiler's log. Raises RuntimeError with the log if it does not compile."""
    nvrtc = _bindings("nvrtc")
    headers = [name.encode() for name in SOURCES[1:]]
    texts = [(HERE / name).read_bytes() for name in SOURCES]
    program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(texts[0], b"kernel.cu", len(headers), texts[1:], headers))
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    log = _buffer(_checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program)))
    _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
    said = log.rstrip(b"\0").decode()
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"NVRTC does not compile kernel.cu with {' '.join(options)}:\n{said}")
    code = _buffer(_checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program)))
    _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, code))
    return code, said


def _buffer(size: int) -> bytes:
    """Bytes that cuda.bindings writes into. Python shares all bytes of one character, and all of none: never those."""
    return bytes(max(2, size))


@functools.cache
def function(config: Config, device_index: int):
    """The kernel, loaded into the device's current context, free to use its shared memory: a CUfunction."""
    driver = _bindings("driver")
    module = _checked(driver, driver.cuModuleLoadData(cubin(config)))
    found = _checked(driver, driver.cuModuleGetFunction(module, b"sink_decode"))
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _checked(driver, driver.cuFuncSetAttribute(found, attribute, config.shared_bytes))
    return found


def launch(kernel, grid, config: Config, parameters: int, stream: int, overlap: bool) -> None:
    """Launch on `stream`; parameters: address of the array of parameter addresses.

    overlap: it may start before the previous kernel on the stream has ended; it waits for that itself.
    """
    driver = _bindings("driver")
    launch_config = _launch_config(
        config.launch.warps, config.shared_bytes, config.launch.cluster, grid, stream, overlap
    )
    _checked(driver, driver.cuLaunchKernelEx(launch_config, kernel, parameters, 0))


@functools.lru_cache(maxsize=4096)
def _launch_config(warps, shared_bytes, cluster, grid, stream, overlap):
    """One object for each stream, never changed: threads may launch at the same time."""
    driver = _bindings("driver")
    made = driver.CUlaunchConfig()
    made.gridDimX, made.gridDimY, made.gridDimZ = grid
    made.blockDimX, made.blockDimY, made.blockDimZ = 32 * warps, 1, 1
    made.sharedMemBytes = shared_bytes
    made.hStream = driver.CUstream(stream)
    attributes = []
    if cluster > 1:
        shape, balance = driver.CUlaunchAttribute(), driver.CUlaunchAttribute()
        shape.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        shape.value.clusterDim.x, shape.value.clusterDim.y, shape.value.clusterDim.z = 1, cluster, 1
        # Else not all clusters find room at once where they are as many as the device holds (LOG.md, 25).
        balance.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE
        by_load = driver.CUclusterSchedulingPolicy.CU_CLUSTER_SCHEDULING_POLICY_LOAD_BALANCING
        balance.value.clusterSchedulingPolicyPreference = by_load
        attributes += [shape, balance]
    if overlap:
        dependent = driver.CUlaunchAttribute()
        dependent.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        dependent.value.programmaticStreamSerializationAllowed = 1
        attributes.append(dependent)
    made.attrs, made.numAttrs = attributes, len(attributes)
    return made


@functools.cache
def _bindings(name):
    """cuda.bindings.<name>; nvrtc with its library loaded. Raises RuntimeError where one of them is missing."""
    try:
        if name == "nvrtc":
            from cuda.bindings import nvrtc

            nvrtc.nvrtcVersion()
            return nvrtc
        from cuda.bindings import driver

        return driver
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(f"the decode kernel cannot be built, {name} is missing ({error}); {REMEDY}") from error


def _checked(library, answer):
    """The value of a call of cuda.bindings; RuntimeError with the error's name where it failed."""
    status, *values = answer
    if int(status) != 0:
        raise RuntimeError(f"{library.__name__.rsplit('.', 1)[-1]} answered {status.name}")
    return values[0] if values else None
