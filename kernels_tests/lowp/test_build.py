"""Building the kernel, with a stand-in for NVRTC."""

from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock

from lowp.sink_decode import build
from lowp.sink_decode.heuristic import Device, Problem, choose


@pytest.fixture
def nvrtc(monkeypatch):
    """A compiler that succeeds with an empty log; `given`: the buffers that it was to write into."""
    given = []

    def fill(_program, buffer):
        given.append(buffer)
        return (0,)

    compiler = SimpleNamespace(
        given=given,
        nvrtcResult=SimpleNamespace(NVRTC_SUCCESS=0),
        nvrtcCreateProgram=lambda *_: (0, "program"),
        nvrtcCompileProgram=lambda *_: (0,),
        nvrtcGetProgramLogSize=lambda _: (0, 1),
        nvrtcGetProgramLog=fill,
        nvrtcGetCUBINSize=lambda _: (0, 1),
        nvrtcGetCUBIN=fill,
    )
    monkeypatch.setattr(build, "_bindings", lambda _name: compiler)
    return compiler


def test_what_the_compiler_writes_into_is_nobody_elses(nvrtc):
    """An empty log is one byte, and Python has one object for all equal ones: writing there changed every space."""
    assert build.compile_nvrtc([])[1] == ""
    assert len(nvrtc.given) == 2 and all(len(one) > 1 for one in nvrtc.given)


@pytest.fixture
def config():
    problem = Problem(64, 8, True, torch.int8, False, False)
    device = Device("sm_90a", True, 132, 232_448, 233_472)
    return build.Config(device.arch, problem, choose(problem, 1, 8, 2048, device))


def test_another_compiler_or_source_is_another_build(nvrtc, config, monkeypatch, tmp_path):
    monkeypatch.setenv("FP8_SINKS_KERNEL_CACHE", str(tmp_path))
    for version in ((13, 0), (13, 1), (13, 1), (12, 9)):
        nvrtc.nvrtcVersion = lambda version=version: (0, *version)
        build.cubin(config)
    assert len(list(tmp_path.rglob("*.cubin"))) == 3
    monkeypatch.setattr(build, "SOURCES", build.SOURCES[:-1])
    build.cubin(config)
    assert len(list(tmp_path.rglob("*.cubin"))) == 4


@pytest.mark.parametrize(("version", "told"), [((12, 8), False), ((12, 9), True), ((13, 0), True)])
def test_the_drivers_own_cache_is_left_out(nvrtc, config, monkeypatch, tmp_path, version, told):
    """NVRTC has one from 12.9 on, and before that no such option: a cold build would not be one."""
    monkeypatch.setenv("FP8_SINKS_KERNEL_CACHE", str(tmp_path))
    nvrtc.nvrtcVersion = lambda: (0, *version)
    given = []
    nvrtc.nvrtcCompileProgram = lambda _program, _count, options: (given.extend(options), (0,))[1]
    build.cubin(config)
    assert given and (b"--no-cache" in given) == told


def test_a_folder_that_cannot_be_written_is_told(nvrtc, config, monkeypatch, tmp_path):
    nvrtc.nvrtcVersion = lambda: (0, 13, 0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("FP8_SINKS_KERNEL_CACHE", str(tmp_path / "file"))
    with pytest.raises(RuntimeError, match=f"{tmp_path}/file.* cannot be written: Not a directory; .*KERNEL_CACHE"):
        build.cubin(config)


def test_a_lock_that_is_held_too_long_is_told(nvrtc, config, monkeypatch, tmp_path):
    nvrtc.nvrtcVersion = lambda: (0, 13, 0)
    monkeypatch.setenv("FP8_SINKS_KERNEL_CACHE", str(tmp_path))
    build.cubin(config)
    (built,) = tmp_path.rglob("*.cubin")
    built.unlink()
    monkeypatch.setattr(build, "LOCK_TIMEOUT_S", 0.1)
    with FileLock(built.with_suffix(".lock")), pytest.raises(RuntimeError, match=r"held for 0\.1 s by another build"):
        build.cubin(config)


def test_launches_on_two_streams_share_nothing(monkeypatch):
    """A thread's launch must not move to the stream of another's."""
    driver = SimpleNamespace(CUlaunchConfig=SimpleNamespace, CUstream=lambda stream: stream)
    monkeypatch.setattr(build, "_bindings", lambda _name: driver)
    build._launch_config.cache_clear()
    first, second = (build._launch_config(8, 1024, 1, (8, 1, 1), stream, False) for stream in (7, 9))
    assert (first.hStream, second.hStream) == (7, 9)
    assert first is build._launch_config(8, 1024, 1, (8, 1, 1), 7, False)
    build._launch_config.cache_clear()
