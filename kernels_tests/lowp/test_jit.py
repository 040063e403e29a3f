"""Compiling, caching and launching kernels, with stand-ins for NVRTC and the driver."""

import dataclasses
import os
from types import SimpleNamespace

import pytest
import torch

from kernels_tests.flashinfer_patches.engine.worlds import at_once
from lowp.jit import compiler, kernel_cache, launcher
from lowp.jit.device import Device
from lowp.sink_decode import build
from lowp.sink_decode.heuristic import choose
from lowp.sink_decode.resources import Variant

DEVICE = Device("sm_90a", True, 132, 232_448, 233_472)
VARIANT = Variant(64, 8, True, torch.int8, False, False)
BUILD = (DEVICE.arch, VARIANT, choose(VARIANT, 1, 8, 2048, DEVICE))


@pytest.fixture
def nvrtc(monkeypatch):
    """A compiler that succeeds with an empty log; `buffers`: that it was given to write into."""
    buffers = []

    def fill(_program, buffer):
        buffers.append(buffer)
        return (0,)

    library = SimpleNamespace(
        buffers=buffers,
        nvrtcResult=SimpleNamespace(NVRTC_SUCCESS=0),
        nvrtcCreateProgram=lambda *_: (0, "program"),
        nvrtcCompileProgram=lambda *_: (0,),
        nvrtcGetProgramLogSize=lambda _: (0, 1),
        nvrtcGetProgramLog=fill,
        nvrtcGetCUBINSize=lambda _: (0, 1),
        nvrtcGetCUBIN=fill,
    )
    monkeypatch.setattr(compiler, "bindings", lambda _name: library)
    return library


def test_buffers_of_the_compiler_are_not_shared(nvrtc):
    """An empty log is one byte, and Python has one object for all equal ones: writing there changed every space."""
    assert compiler.compile_nvrtc(build.SOURCE, [])[1] == ""
    assert len(nvrtc.buffers) == 2 and all(len(buffer) > 1 for buffer in nvrtc.buffers)


def test_another_compiler_or_source_is_another_build(nvrtc, monkeypatch, tmp_path):
    monkeypatch.setenv("FP8_SINKS_KERNEL_CACHE", str(tmp_path))
    for version in ((13, 0), (13, 1), (13, 1), (12, 9)):
        nvrtc.nvrtcVersion = lambda version=version: (0, *version)
        build.cubin(*BUILD)
    assert len(list(tmp_path.rglob("*.cubin"))) == 3
    shorter = dataclasses.replace(build.SOURCE, files=build.SOURCE.files[:-1])
    monkeypatch.setattr(build, "SOURCE", shorter)
    build.cubin(*BUILD)
    assert len(list(tmp_path.rglob("*.cubin"))) == 4


@pytest.mark.parametrize(("version", "left_out"), [((12, 8), False), ((12, 9), True), ((13, 0), True)])
def test_the_drivers_own_cache_is_left_out(nvrtc, monkeypatch, tmp_path, version, left_out):
    """NVRTC has one from 12.9 on, and before that no such option: a cold build would not be one."""
    monkeypatch.setenv("FP8_SINKS_KERNEL_CACHE", str(tmp_path))
    nvrtc.nvrtcVersion = lambda: (0, *version)
    passed = []
    nvrtc.nvrtcCompileProgram = lambda _program, _count, options: (passed.extend(options), (0,))[1]
    build.cubin(*BUILD)
    assert passed and (b"--no-cache" in passed) == left_out


def test_a_folder_that_cannot_be_written_is_refused(nvrtc, monkeypatch, tmp_path):
    nvrtc.nvrtcVersion = lambda: (0, 13, 0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("FP8_SINKS_KERNEL_CACHE", str(tmp_path / "file"))
    with pytest.raises(RuntimeError, match=f"{tmp_path}/file.* cannot be .*: Not a directory; .*KERNEL_CACHE"):
        build.cubin(*BUILD)


@pytest.fixture
def built(nvrtc, monkeypatch, tmp_path):
    """The file of a kernel that was built, and what the next builds make: b"again"."""
    nvrtc.nvrtcVersion = lambda: (0, 13, 0)
    monkeypatch.setenv("FP8_SINKS_KERNEL_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "compile_nvrtc", lambda *_: (b"first", ""))
    assert build.cubin(*BUILD) == b"first"
    monkeypatch.setattr(compiler, "compile_nvrtc", lambda *_: (b"again", ""))
    assert build.cubin(*BUILD) == b"first", "from the cache"
    (path,) = tmp_path.rglob("*.cubin")
    return path


@pytest.mark.parametrize("damage", ["cut off", "changed", "empty", "another version's"])
def test_a_broken_kernel_is_built_again(built, damage):
    data = built.read_bytes()
    damaged = {"cut off": data[:-1], "changed": b"F" + data[1:], "empty": b"", "another version's": b"first"}
    built.write_bytes(damaged[damage])
    assert build.cubin(*BUILD) == b"again"
    assert built.read_bytes() != damaged[damage] and build.cubin(*BUILD) == b"again"


@pytest.mark.parametrize("target", ["the kernel", "the folder"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_a_kernel_that_any_user_could_write_is_not_loaded(built, target, mode):
    path = built if target == "the kernel" else built.parent
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(RuntimeError, match=rf"{path} is user .*writable by no other.*FP8_SINKS_KERNEL_CACHE"):
        build.cubin(*BUILD)
    path.chmod(path.stat().st_mode & ~mode)
    assert build.cubin(*BUILD) == b"first"


def test_a_kernel_of_another_user_is_not_loaded(built, monkeypatch):
    user = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(RuntimeError, match=rf"expected one of user {user}"):
        build.cubin(*BUILD)


def test_a_linked_kernel_is_not_loaded(built, tmp_path):
    built.rename(tmp_path / "elsewhere")
    built.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RuntimeError, match=f"{built} cannot be read"):
        build.cubin(*BUILD)


def test_only_the_user_can_write_built_kernels(nvrtc, monkeypatch, tmp_path):
    """Also where files of a user are the group's by default."""
    nvrtc.nvrtcVersion = lambda: (0, 13, 0)
    monkeypatch.setenv("FP8_SINKS_KERNEL_CACHE", str(tmp_path / "new"))
    before = os.umask(0)
    try:
        build.cubin(*BUILD)
    finally:
        os.umask(before)
    (path,) = tmp_path.rglob("*.cubin")
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    build.cubin(*BUILD)


def test_a_folder_of_foreign_files_is_not_built_into(nvrtc, monkeypatch, tmp_path):
    nvrtc.nvrtcVersion = lambda: (0, 13, 0)
    monkeypatch.setenv("FP8_SINKS_KERNEL_CACHE", str(tmp_path))
    (tmp_path / "sink_decode").mkdir(mode=0o700)
    (tmp_path / "sink_decode" / "notes.txt").touch()
    with pytest.raises(RuntimeError, match="holds notes"):
        build.cubin(*BUILD)
    assert [path.name for path in (tmp_path / "sink_decode").iterdir()] == ["notes.txt"]


def test_a_build_that_cannot_be_stored_leaves_nothing(built, monkeypatch):
    built.unlink()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RuntimeError, match="No space left on device"):
        build.cubin(*BUILD)
    assert [path.name for path in built.parent.iterdir()] == [kernel_cache.MARKER]


def test_processes_may_build_the_same_kernel_at_once(nvrtc, monkeypatch, tmp_path):
    nvrtc.nvrtcVersion = lambda: (0, 13, 0)
    monkeypatch.setenv("FP8_SINKS_KERNEL_CACHE", str(tmp_path))
    assert all(at_once(*[lambda: build.cubin(*BUILD)] * 4))
    assert len(list(tmp_path.rglob("*.*"))) == 1 and build.cubin(*BUILD)


def test_launches_on_two_streams_share_nothing(monkeypatch):
    """A thread's launch must not move to the stream of another's."""
    driver = SimpleNamespace(CUlaunchConfig=SimpleNamespace, CUstream=lambda stream: stream)
    monkeypatch.setattr(launcher, "bindings", lambda _name: driver)
    launcher._launch_config.cache_clear()
    first, second = (launcher._launch_config((8, 1, 1), 256, 1024, 1, False, stream) for stream in (7, 9))
    assert (first.hStream, second.hStream) == (7, 9)
    assert first is launcher._launch_config((8, 1, 1), 256, 1024, 1, False, 7)
    launcher._launch_config.cache_clear()
