"""Building the kernel, with a stand-in for NVRTC."""

from types import SimpleNamespace

import pytest

from lowp.sink_decode import build


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
