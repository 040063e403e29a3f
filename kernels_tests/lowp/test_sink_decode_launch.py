"""A call on its way to the driver, with stand-ins for the device and the driver: grid, threads and parameters."""

import ctypes
import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from kernels_tests.lowp.stand_ins import A100, H200, without_memory
from lowp.jit import launcher
from lowp.paged.cases import Case, build
from lowp.sink_decode import build as builds
from lowp.sink_decode import launch, prebuild, sink_decode
from lowp.sink_decode.params import Params

CASE = Case((100, 7), query_tokens=3, window_left=31, granularity="token_head")


@pytest.fixture
def launched(monkeypatch):
    """A function that runs a case on meta tensors and a device: the launch's configuration and the parameters."""
    launches = []

    def launch_kernel(config, function, addresses, _extra):
        address = ctypes.cast(addresses, ctypes.POINTER(ctypes.c_void_p))[0]
        launches.append((config, function, Params.from_buffer_copy(ctypes.string_at(address, ctypes.sizeof(Params)))))
        return (0,)

    class Attribute(SimpleNamespace):
        def __init__(self):
            super().__init__(value=SimpleNamespace(clusterDim=SimpleNamespace()))

    enums = ("CUlaunchAttributeID", "CUclusterSchedulingPolicy", "CUfunction_attribute")
    driver = SimpleNamespace(
        __name__="driver",
        CUlaunchConfig=SimpleNamespace,
        CUlaunchAttribute=Attribute,
        CUstream=lambda stream: stream,
        cuModuleLoadData=lambda cubin: (0, cubin),
        cuModuleGetFunction=lambda module, name: (0, (module, name)),
        cuFuncSetAttribute=lambda *_: (0,),
        cuLaunchKernelEx=launch_kernel,
        **{name: type(name, (), {"__getattr__": lambda _, member: member})() for name in enums},
    )
    monkeypatch.setattr(launcher, "bindings", lambda _name: driver)
    monkeypatch.setattr(builds, "cubin", lambda arch, _variant, _launch: arch)
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=7))
    launcher._launch_config.cache_clear()
    builds.kernel.cache_clear()

    def run(case, device, **options):
        monkeypatch.setattr(launch, "device_of", lambda _device: device)
        workspace = torch.empty(1 << 24, dtype=torch.uint8, device="meta")
        sink_decode(**without_memory(build(case)), **options, workspace=workspace)
        return launches.pop()

    yield run
    launcher._launch_config.cache_clear()
    builds.kernel.cache_clear()


def test_a_cluster_launch(launched):
    config, function, params = launched(dataclasses.replace(CASE, window_left=-1, table_tokens=8192), H200)
    assert function == ("sm_90a", b"sink_decode") and config.hStream == 7
    cluster = config.attrs[0].value.clusterDim
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (8, cluster.y, 2) and cluster.y > 1
    assert config.blockDimX % 32 == 0 and config.sharedMemBytes > 0 and params.splits == 0


def test_a_planned_launch(launched):
    config, function, params = launched(CASE, A100)
    assert function == ("sm_80", b"sink_decode") and config.attrs == []
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (8, params.splits, 1) and params.splits > 2
    assert params.arrived == (1 << 24) - 2 * 8 * 4


def test_a_hint_of_the_longest_length_chooses_as_a_narrow_table_does(launched):
    wide = dataclasses.replace(CASE, lengths=(100,) * 8, window_left=-1, table_tokens=131072)
    narrow = dataclasses.replace(wide, table_tokens=2048)
    hinted, expected, unknown = (
        launched(wide, H200, longest=2048)[0],
        launched(narrow, H200)[0],
        launched(wide, H200)[0],
    )
    grids = [(config.gridDimY, config.gridDimZ, config.blockDimX) for config in (hinted, expected, unknown)]
    assert grids[0] == grids[1] != grids[2]


@pytest.mark.parametrize("overlap", [None, True, False])
def test_overlap_is_an_argument(launched, overlap):
    config, _, _ = launched(dataclasses.replace(CASE, window_left=-1), H200, overlap=overlap)
    serialised = [attribute.id for attribute in config.attrs].count(
        "CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION"
    )
    assert serialised == (overlap is not False)  # this launch's default is overlap


@pytest.mark.parametrize("longest", [0, 2.5])
def test_a_wrong_hint_raises(longest):
    with pytest.raises(ValueError, match="longest is"):
        sink_decode(**build(CASE), longest=longest)


def test_prebuild_loads_every_launch_of_the_batches(launched, monkeypatch):
    monkeypatch.setattr(launch, "device_of", lambda _device: H200)
    compiled = []
    monkeypatch.setattr(builds, "cubin", lambda arch, _variant, fitting: compiled.append(fitting) or arch)
    case = dataclasses.replace(CASE, lengths=(100,) * 4, window_left=-1, table_tokens=8192)
    count = prebuild(range(1, 65), **without_memory(build(case)))
    assert count == len({dataclasses.replace(x, overlap=True) for x in compiled}) > 3  # overlap is no part of a build
    before = len(compiled)
    for batch in (1, 4, 40, 64):
        launched(dataclasses.replace(case, lengths=(100,) * batch), H200)
    assert len(compiled) == before


def test_prebuild_on_a_cpu_has_nothing_to_build():
    assert prebuild([1, 2], **build(CASE)) == 0


@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_the_parameters_of_a_call(launched, layout):
    _, _, params = launched(dataclasses.replace(CASE, layout=layout, page_size=32), H200)
    head, slot = (32 * 64, 64) if layout == "HND" else (64, 8 * 64)
    expected = {
        "batch": 2,
        "group": 8,
        "q_stride": 3 * 64 * 64 * 2,
        "q_token_stride": 64 * 64 * 2,
        "table_width": 4,
        "page_shift": 1,
        "page_stride": 8 * 32 * 64 // 16,
        "head_stride": head // 16,
        "slot_stride": slot // 16,
        "scale_page": 8 * 32,
        "scale_head": 1,  # the scales lie as [pages, slots, heads] in either layout
        "scale_slot": 8,
        "k_scale_head": 0,
        "window_left": 31,
    }
    assert {name: getattr(params, name) for name in expected} == expected
    assert params.sm_scale == 0.125 and params.lse is None


def test_an_empty_batch_is_not_launched():
    """It returns, though there is no device."""
    arguments = build(CASE)
    empty = {name: arguments[name][:0] for name in ("q", "block_table", "seq_lens")}
    assert sink_decode(**without_memory(arguments | empty)).shape == (0, 3, 64, 64)
