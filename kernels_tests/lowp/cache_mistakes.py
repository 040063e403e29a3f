"""Arguments that all kernels of the paged cache refuse: caches, their scales and layout."""

from collections.abc import Callable

import pytest
import torch

from kernels_tests.lowp.memory import strided
from lowp.paged.memory import memory_of

# A change of the arguments of a call with scales per head and caches [pages, 2, 16, 64], the error, and a regular
# expression for its message.
CACHE_MISTAKES = {
    "layout": (lambda a: {"layout": "NDH"}, ValueError, "layout is 'NDH'; expected NHD, HND"),
    "cache dtype": (lambda a: {"k_cache": a["k_cache"].float()}, TypeError, "k_cache has dtype torch.float32"),
    "bytes": (lambda a: {"k_cache": a["k_cache"].view(torch.uint8)}, TypeError, "k_cache has dtype torch.uint8"),
    "cache elsewhere": (lambda a: {"v_cache": a["v_cache"].to("meta")}, ValueError, "v_cache is on meta"),
    "cache shape": (lambda a: {"v_cache": a["v_cache"][0]}, ValueError, "v_cache has shape"),
    "cache strides": (lambda a: {"v_cache": strided(a["v_cache"])}, ValueError, "v_cache has strides"),
    "unequal caches": (lambda a: {"v_cache": a["v_cache"][1:]}, ValueError, "expected the same"),
    "page size": (
        lambda a: {name: a[name][:, :, :12] for name in ("k_cache", "v_cache")},
        NotImplementedError,
        "page size is 12; this kernel has powers of two",
    ),
    "scale number": (lambda a: {"k_scale": 0.5}, TypeError, "k_scale is float; expected None or an fp32 tensor"),
    "scale dtype": (lambda a: {"v_scale": a["v_scale"].half()}, TypeError, "v_scale is torch.float16"),
    "scale device": (lambda a: {"k_scale": a["k_scale"].to("meta")}, ValueError, "k_scale is on meta"),
    "scale shape": (lambda a: {"k_scale": torch.ones(3)}, ValueError, r"k_scale has shape \(3,\)"),
}


def check_refused(function: Callable, arguments: dict, outputs: tuple[str, ...], error: type, words: str) -> None:
    """Call with a mistake: the error is raised, and no output on the CPU has changed."""
    written = [arguments[name] for name in outputs if arguments[name].device.type == "cpu"]
    memories = [memory_of(x).clone() for x in written]
    with pytest.raises(error, match=words):
        function(**arguments)
    assert all(memory_of(x).equal(memory) for x, memory in zip(written, memories, strict=True))
