"""How vLLM's kernels are called, without a GPU: stand-ins that record their arguments, and vLLM's own signatures."""

import ast
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bench.kernels import peers, vllm_peers
from lowp.formats import FORMATS
from lowp.paged import inputs
from lowp.paged.shapes import Shape, even

SHAPES = [Shape((300, 16, 100)), even(2, 200, window_left=127), even(1, 40, head_dim=128), even(2, 40, query_tokens=2)]
SOURCES = {
    "flash_attn_varlen_func": "vllm_flash_attn/flash_attn_interface.py",
    "get_scheduler_metadata": "vllm_flash_attn/flash_attn_interface.py",
    "unified_attention": "v1/attention/ops/triton_unified_attention.py",
}


class Vllm:
    """A stand-in for vLLM: records the arguments by name."""

    def __init__(self, patch):
        self.arguments: dict[str, list[dict]] = {name: [] for name in SOURCES}
        self.calls: list[tuple] = []
        mode = type("KVQuantMode", (), {"NONE": 0, "FP8_PER_TENSOR": 1})
        modules = {
            "vllm.vllm_flash_attn": {
                "flash_attn_varlen_func": self._flash_attn,
                "get_scheduler_metadata": self._metadata,
                "fa_version_unsupported_reason": lambda version: None if version == 3 else "not FA3",
            },
            "vllm.v1.attention.ops.triton_unified_attention": {"unified_attention": self._unified},
            "vllm.v1.kv_cache_interface": {"KVQuantMode": mode},
        }
        for path, content in modules.items():
            parts = path.split(".")
            for end in range(1, len(parts) + 1):
                name = ".".join(parts[:end])
                patch.setitem(sys.modules, name, sys.modules.get(name) or ModuleType(name))
                sys.modules[name].__path__ = []
            vars(sys.modules[path]).update(content)

    def _metadata(self, **options):
        self.arguments["get_scheduler_metadata"].append(options)
        return torch.zeros(5, dtype=torch.int32)

    def _flash_attn(self, q, k, v, **options):
        self.arguments["flash_attn_varlen_func"].append({"q": q, "k": k, "v": v} | options)
        assert options["fa_version"] == 3 and options["causal"] and options["s_aux"].dtype == torch.bfloat16
        self._record(q, k, v, options["out"], options["s_aux"], options)

    def _unified(self, q, k, v, out, **options):
        self.arguments["unified_attention"].append({"q": q, "k": k, "v": v, "out": out} | options)
        assert options["causal"] and options["softcap"] == 0 and options["sinks"].dtype == torch.bfloat16
        self._record(q, k, v, out, options["sinks"], options)

    def _record(self, q, k, v, out, sinks, options) -> None:
        """Check what both functions are given alike, and record the rest."""
        assert k.is_contiguous() and v.is_contiguous()
        tokens = options["max_seqlen_q"]
        assert options["cu_seqlens_q"].tolist() == [row * tokens for row in range(len(options["seqused_k"]) + 1)]
        assert len(q) == tokens * len(options["seqused_k"])
        assert options["max_seqlen_k"] == options["seqused_k"].max()
        left, right = options["window_size"]
        assert right == (-1 if left < 0 else 0)
        same = (options["block_table"], options["seqused_k"], options["softmax_scale"], left)
        self.calls.append((q, k, v, out, sinks, *same))


@pytest.fixture
def vllm(monkeypatch) -> Vllm:
    return Vllm(monkeypatch)


def call_kernel(vllm: Vllm, name: str, kv_format: str, setting: str, shape: Shape, query_format: str) -> None:
    """Call a kernel at a shape, and check that each layer's call is given that layer's inputs."""
    data = inputs.build(shape, layers=2, device="cpu")
    kernel = next(kernel for kernel in peers.KERNELS if str(kernel) == f"{name} {kv_format}")
    for call in kernel.calls(data, setting):
        call()
    assert len(vllm.calls) == 2
    for layer, (q, k, v, out, sinks, table, lengths, sm_scale, window_left) in enumerate(vllm.calls):
        cache = [values.transpose(1, 2).contiguous() for values in data.caches[kv_format][layer]]
        assert same_bits(q, data.q[layer].to(FORMATS[query_format].dtype).view(-1, 64, shape.head_dim))
        assert same_bits(k, cache[0]) and same_bits(v, cache[1])
        assert (out.data_ptr(), out.numel()) == (data.out[layer].data_ptr(), data.out[layer].numel())
        assert torch.equal(sinks.float(), data.sinks)
        assert table is data.block_table and lengths is data.seq_lens
        assert (sm_scale, window_left) == (data.sm_scale, shape.window_left)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kv_format", ["bf16", "e4m3"])
@pytest.mark.parametrize("setting", vllm_peers.FA3_SETTINGS)
def test_fa3(vllm, shape, kv_format, setting):
    call_kernel(vllm, "vllm-fa3", kv_format, setting, shape, query_format=kv_format)
    fp8 = kv_format == "e4m3"
    first, second = vllm.arguments["flash_attn_varlen_func"]
    assert first["q"].dtype == first["k"].dtype == FORMATS[kv_format].dtype and first["q"] is not second["q"]
    scales = [first[f"{name}_descale"] for name in "qkv"]
    if fp8:
        assert all(scale.shape == (shape.batch, 8) and (scale == 1).all() for scale in scales)
    else:
        assert scales == [None] * 3
    planned = vllm.arguments["get_scheduler_metadata"]
    assert len(planned) == (setting == vllm_peers.SPLITS_BY_VLLM), "once for all layers"
    assert ("scheduler_metadata" in first) == bool(planned)
    if planned:
        assert planned[0]["num_splits"] == first["num_splits"] and planned[0]["window_size"] == tuple(
            first["window_size"]
        )
        assert planned[0]["headdim"] == shape.head_dim and planned[0]["qkv_dtype"] == first["q"].dtype


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kv_format", ["bf16", "e4m3"])
def test_triton(vllm, shape, kv_format):
    call_kernel(vllm, "vllm-triton", kv_format, "vLLM's own", shape, query_format="bf16")
    first = vllm.arguments["unified_attention"][0]
    assert first["q"].dtype == torch.bfloat16 and first["kv_quant_mode"] == (kv_format == "e4m3")
    assert first["softmax_segm_output"].shape == (16, 64, 16, shape.head_dim) and first["seq_threshold_3D"] == 16


def test_why_vllms_kernels_cannot_be_used(vllm, monkeypatch):
    monkeypatch.setattr(vllm_peers, "find_spec", lambda _name: object())
    assert vllm_peers.unusable_reason("vllm-triton") is None and vllm_peers.unusable_reason("vllm-fa3") is None
    sys.modules["vllm.vllm_flash_attn"].fa_version_unsupported_reason = lambda _version: "only on 9.x"
    assert vllm_peers.unusable_reason("vllm-fa3") == "only on 9.x" and vllm_peers.unusable_reason("vllm-triton") is None
    del sys.modules["vllm.vllm_flash_attn"].fa_version_unsupported_reason
    assert "vLLM's kernel cannot be imported: ImportError" in vllm_peers.unusable_reason("vllm-fa3")
    monkeypatch.setattr(vllm_peers, "find_spec", lambda _name: None)
    assert vllm_peers.unusable_reason("vllm-triton") == vllm_peers.missing_reason() == "vLLM is not installed"


def test_the_installed_vllm_accepts_the_arguments(vllm):
    """The names of the arguments against vLLM's sources, which a CPU build has too."""
    spec = find_spec_of_vllm()
    if spec is None:
        pytest.skip("vLLM is not installed")
    call_kernel(vllm, "vllm-fa3", "e4m3", vllm_peers.SPLITS_BY_VLLM, SHAPES[0], query_format="e4m3")
    vllm.calls.clear()
    call_kernel(vllm, "vllm-triton", "e4m3", "vLLM's own", SHAPES[0], query_format="bf16")
    for function, source in SOURCES.items():
        passed = set(vllm.arguments[function][0])
        accepted, required = parameters(Path(spec).parent / source, function)
        assert passed <= accepted and required <= passed | {"q", "k", "v"}, function


def find_spec_of_vllm() -> str | None:
    """The path of the real vLLM, beside the stand-in."""
    stand_in = sys.modules.pop("vllm")
    try:
        spec = find_spec("vllm")
    finally:
        sys.modules["vllm"] = stand_in
    return spec.origin if spec else None


def parameters(path: Path, function: str) -> tuple[set[str], set[str]]:
    """A function's parameters, and those without a default, from its source alone."""
    tree = ast.parse(path.read_text())
    arguments = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function).args
    names = [argument.arg for argument in arguments.args]
    keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    required = {argument.arg for argument, default in keywords if default is None}
    accepted = {*names, *(argument.arg for argument in arguments.kwonlyargs)}
    return accepted, {*names[: len(names) - len(arguments.defaults)], *required}
