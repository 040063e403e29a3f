"""The kernel's limits: offsets that it can reach, a workspace that fits; no GPU needed."""

import dataclasses

import pytest
import torch

from lowp.paged.cases import Case, build
from lowp.sink_decode import launch, sink_decode
from lowp.sink_decode.call import Call
from lowp.sink_decode.params import params_of

SMALL = Case(lengths=(1, 0, 17, 40, 33), query_heads=8, kv_heads=2, granularity="head")


def call_of(arguments):
    return Call(**arguments, out=arguments["q"], lse=None, workspace=None)


def wide(changes):
    """The arguments of a call whose tensors have no memory, some with other strides (of pages, heads, slots, dims)."""
    case = dataclasses.replace(SMALL, granularity="token_head")
    arguments = {
        name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in build(case).items()
    }
    for kind, (pages, strides) in changes.items():
        for name in (f"k_{kind}", f"v_{kind}"):
            old = arguments[name]
            arguments[name] = torch.empty_strided((pages, *old.shape[1:]), strides, dtype=old.dtype, device="meta")
    return arguments


TOO_WIDE = {
    "pages": ({"cache": (2**25 + 1, (2048, 1024, 64, 1)), "scale": (2**25 + 1, (32, 16, 1))}, "spans over 64 GiB"),
    "heads": ({"cache": (8, (1024, 2**36, 64, 1)), "scale": (8, (32, 16, 1))}, "spans over 64 GiB"),
    "slots": ({"cache": (8, (128, 64, 2**29, 1)), "scale": (8, (32, 16, 1))}, "a page's slots over 4 GiB"),
    # fp32 scales that lie inside a cache's pages have the pages' stride
    "scales": ({"cache": (2**21, (2**13, 2**12, 64, 1)), "scale": (2**21, (2**11, 2**10, 16))}, "spans over 8 GiB"),
}


def test_a_batch_that_the_grid_cannot_hold_raises():
    arguments = build(SMALL)
    repeated = {
        name: arguments[name][:1].expand(2**15 + 1, *arguments[name].shape[1:]) for name in ("q", "block_table")
    }
    with pytest.raises(NotImplementedError, match="a batch of 32769; this kernel has up to 32768"):
        sink_decode(**arguments | repeated)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("pages", "raises"), [(2**25, True), (2**27, True), (2**25 - 1, False)])
def test_a_table_of_too_many_tokens_raises(device, pages, raises):
    """2^25 pages of 16 tokens. Within the bound, the next mistake raises."""
    arguments = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in build(SMALL).items()
    }
    table = torch.empty(1, pages, dtype=torch.int32, device=device).expand(5, -1)  # never written: it takes no memory
    error, words = (NotImplementedError, "pages of 16 tokens") if raises else (TypeError, "k_scale is float")
    with pytest.raises(error, match=words):
        sink_decode(**arguments | {"block_table": table, "k_scale": 0.5})


@pytest.mark.parametrize("axis", TOO_WIDE)
def test_strides_beyond_32_bit_offsets_raise(axis):
    changes, words = TOO_WIDE[axis]
    with pytest.raises(NotImplementedError, match=words):
        sink_decode(**wide(changes))


@pytest.mark.parametrize("layout", ["HND", "NHD", "interleaved", "NHD interleaved"])
@pytest.mark.parametrize(
    ("kv_format", "head_dim", "interleaved"),
    [("e4m3", 64, True), ("int8", 64, True), ("e4m3", 128, False), ("bf16", 64, False)],
)
def test_interleaved_caches_are_detected(layout, kv_format, head_dim, interleaved):
    """They are copied a line of both at a time: apart, each would be half a line."""
    case = dataclasses.replace(SMALL, layout=layout, kv_format=kv_format, head_dim=head_dim)
    arguments = build(case)
    assert launch.variant_of(call_of(arguments)).interleaved == (interleaved and "interleaved" in layout)
    swapped = arguments | {"k_cache": arguments["v_cache"], "v_cache": arguments["k_cache"]}
    assert not launch.variant_of(call_of(swapped)).interleaved


def test_a_window_longer_than_an_int32_is_full_attention():
    arguments = build(SMALL)
    for window_left, expected in ((2**31 + 5, 2**30), (127, 127), (-1, -1)):
        assert params_of(call_of(arguments | {"window_left": window_left})).window_left == expected
    assert torch.equal(sink_decode(**arguments | {"window_left": 2**31 + 5}), sink_decode(**arguments))


@pytest.mark.parametrize(
    ("workspace", "error", "words"),
    [
        (torch.zeros(16), TypeError, "workspace is torch.float32; expected"),
        (torch.zeros(80, dtype=torch.uint8, device="meta"), ValueError, "80 bytes on meta"),
        (torch.zeros(160, dtype=torch.uint8)[::2], ValueError, r"strides \(2,\)"),
        (torch.zeros(96, dtype=torch.uint8)[4:], ValueError, "expected a whole one"),
        (torch.zeros(81, dtype=torch.uint8), ValueError, "81 bytes"),
        (torch.zeros(64, dtype=torch.uint8), ValueError, "workspace has 64 bytes; this call needs 80"),
    ],
    ids=["dtype", "device", "strides", "address", "size", "small"],
)
def test_a_workspace_that_does_not_fit_raises(workspace, error, words):
    device = torch.device("cpu")
    with pytest.raises(error, match=words):
        launch.checked_workspace(workspace, 70, device)
    fitting = torch.zeros(80, dtype=torch.uint8)
    assert launch.checked_workspace(fitting, 70, device) is fitting
    assert launch.checked_workspace(None, 70, device).tolist() == [0] * 80
