"""How vLLM's kernels are called, without a GPU: stand-ins that compute attention, and vLLM's own signatures."""

import ast
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bench.kernels import exact, inputs, peers, vllm_peers
from bench.kernels.shape import Shape, even
from lowp.formats import FORMATS
from lowp.sink_decode import reference

SHAPES = [Shape((300, 16, 100)), even(2, 200, window_left=127), even(1, 40, head_dim=128)]
SOURCES = {
    "flash_attn_varlen_func": "vllm_flash_attn/flash_attn_interface.py",
    "get_scheduler_metadata": "vllm_flash_attn/flash_attn_interface.py",
    "unified_attention": "v1/attention/ops/triton_unified_attention.py",
}


class Vllm:
    """A stand-in for vLLM: records the arguments by name, and computes decode attention from them."""

    def __init__(self, patch):
        self.arguments: dict[str, list[dict]] = {name: [] for name in SOURCES}
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
        self._answer(q, k, v, options.pop("out"), options["s_aux"], **self._common(options))

    def _unified(self, q, k, v, out, **options):
        self.arguments["unified_attention"].append({"q": q, "k": k, "v": v, "out": out} | options)
        assert options["causal"] and options["softcap"] == 0 and options["sinks"].dtype == torch.bfloat16
        self._answer(q, k, v, out, options["sinks"], **self._common(options))

    @staticmethod
    def _common(options) -> dict:
        batch = len(options["seqused_k"])
        assert options["max_seqlen_q"] == 1 and options["cu_seqlens_q"].tolist() == list(range(batch + 1))
        assert options["max_seqlen_k"] == options["seqused_k"].max()
        left, right = options["window_size"]
        assert right == (-1 if left < 0 else 0)
        return {
            "block_table": options["block_table"],
            "seq_lens": options["seqused_k"],
            "sm_scale": options["softmax_scale"],
            "window_left": left,
        }

    @staticmethod
    def _answer(q, k, v, out, sinks, *, block_table, seq_lens, **options):
        assert k.is_contiguous() and v.is_contiguous()
        exact_out, _ = reference(q, k, v, block_table, seq_lens, sinks.float(), layout="NHD", **options)
        out.copy_(exact_out)


@pytest.fixture
def vllm(monkeypatch) -> Vllm:
    return Vllm(monkeypatch)


def error_of_call(name: str, kv_format: str, setting: str, shape: Shape) -> float:
    """Call a kernel at a shape; the error of its output."""
    data = inputs.build(shape, layers=2, device="cpu")
    inputs.poison(data)
    kernel = next(kernel for kernel in peers.KERNELS if str(kernel) == f"{name} {kv_format}")
    for call in kernel.calls(data, setting):
        call()
    return exact.rel_l2(exact.outputs(data), exact.expected(data, kv_format, sinks=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kv_format", ["bf16", "e4m3"])
@pytest.mark.parametrize("setting", vllm_peers.FA3_SETTINGS)
def test_fa3(vllm, shape, kv_format, setting):
    error = error_of_call("vllm-fa3", kv_format, setting, shape)
    fp8 = kv_format == "e4m3"
    assert (0.01 < error < 0.06) if fp8 else (1e-3 < error < 2.5e-3)
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
    assert 1e-3 < error_of_call("vllm-triton", kv_format, "vLLM's own", shape) < 2.5e-3
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
    error_of_call("vllm-fa3", "e4m3", vllm_peers.SPLITS_BY_VLLM, SHAPES[0])
    error_of_call("vllm-triton", "e4m3", "vLLM's own", SHAPES[0])
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
