"""Compile a kernel with NVRTC, once per machine and set of options."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lowp.jit import kernel_cache
from lowp.jit.driver import bindings, checked


@dataclass(frozen=True)
class Source:
    """The source files of one kernel.

    name: of the kernel's function and of its folder in the cache. files: names in `folder`, first the one that is
    compiled, then the headers that it includes.
    """

    name: str
    folder: Path
    files: tuple[str, ...]


def cubin(source: Source, arch: str, defines: dict[str, int]) -> bytes:
    """Load the compiled kernel from the cache, or compile and store it, in under a second.

    Processes that need the same kernel at the same time each compile it. arch: as nvcc names it (sm_90a).
    Raises RuntimeError where NVRTC is missing, the source does not compile, or the cache folder cannot be written, is
    another user's or writable by others.
    """
    nvrtc = bindings("nvrtc")
    options = ["-std=c++17", f"-arch={arch}", *(f"-D{name}={value}" for name, value in defines.items())]
    _, *version = nvrtc.nvrtcVersion()  # major, minor
    if version >= [12, 9]:
        options.append("--no-cache")  # else NVRTC may answer from the driver's cache, which a wipe of ours leaves full
    content = repr((version, options)).encode() + b"".join((source.folder / name).read_bytes() for name in source.files)
    path = kernel_cache.root() / source.name / f"{hashlib.sha256(content).hexdigest()[:32]}.cubin"
    try:
        kernel = kernel_cache.load(path)
        if kernel is None:
            kernel = compile_nvrtc(source, options)[0]
            kernel_cache.store(path, kernel)
    except OSError as error:
        raise RuntimeError(
            f"{error.filename or path} cannot be read or written: {error.strerror}; expected a folder for compiled "
            f"kernels, with space: name one by {kernel_cache.VARIABLE}"
        ) from error
    return kernel


def compile_nvrtc(source: Source, options: list[str]) -> tuple[bytes, str]:
    """Compile a kernel: its cubin and the compiler's log. Raises RuntimeError with the log if it does not compile."""
    nvrtc = bindings("nvrtc")
    main, *headers = source.files
    text, *header_texts = ((source.folder / name).read_bytes() for name in source.files)
    names = [name.encode() for name in headers]
    program = checked(nvrtc, nvrtc.nvrtcCreateProgram(text, main.encode(), len(names), header_texts, names))
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    buffer = _buffer(checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program)))
    checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, buffer))
    log = buffer.rstrip(b"\0").decode()
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"NVRTC does not compile {main} with {' '.join(options)}:\n{log}")
    code = _buffer(checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program)))
    checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, code))
    return code, log


def _buffer(size: int) -> bytes:
    """Allocate bytes for cuda.bindings to write into: at least 2, since Python shares equal bytes of length 0 and 1."""
    return bytes(max(2, size))
