"""Which storage, implementation and page size a CPU server gets for a KV cache dtype, and the scales that reach it."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm._custom_ops", reason="vLLM for the CPU is not installed")
from vllm.platforms import current_platform

if not current_platform.is_cpu():
    pytest.skip("vLLM here is not the CPU build", allow_module_level=True)
from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVQuantMode, SlidingWindowSpec

from kernels_tests.vllm_launch.refusals import refused
from vllm_launch.decoder.contract import INT8, KV_FORMAT, KV_SCALES
from vllm_launch.plugin import cpu_cache, cpu_storage
from vllm_launch.plugin.cpu_cache import RoundingCpuBackend, RoundingCpuImpl
from vllm_launch.plugin.cpu_storage import StaticInt8, storage_of
from vllm_launch.plugin.cpu_widen import WideningBuilder, WideningCpuBackend, WideningCpuImpl


@pytest.fixture
def config(served, monkeypatch):
    """A function that makes a vLLM config of the served model, and sets the plugin's variables."""
    cpu_storage._read_scales.cache_clear()

    def make(cache_dtype="fp8", dtype=torch.bfloat16, page=128, kv_format="", kv_scales=""):
        monkeypatch.setenv(KV_FORMAT, kv_format)
        monkeypatch.setenv(KV_SCALES, str(kv_scales))
        text = SimpleNamespace(num_hidden_layers=1, num_key_value_heads=2)
        return SimpleNamespace(
            cache_config=SimpleNamespace(cache_dtype=cache_dtype, block_size=page),
            model_config=SimpleNamespace(dtype=dtype, model=str(served), revision=None, hf_text_config=text),
            parallel_config=SimpleNamespace(tensor_parallel_size=1),
        )

    return make


@pytest.mark.parametrize(
    ("kv_cache_dtype", "kv_format", "name"),
    [
        ("auto", "", None),
        ("fp8", "", "e4m3"),
        ("fp8", "e4m3", "e4m3"),
        ("fp8_e4m3", "", "e4m3"),
        ("fp8_e5m2", "", "e5m2"),
        (INT8, "", "int8"),
        ("fp8", "int8", "int8-static"),
    ],
)
def test_the_storage_of_a_cache_dtype(config, int8_scale_file, kv_cache_dtype, kv_format, name):
    server = config(kv_cache_dtype, kv_format=kv_format, kv_scales=int8_scale_file.path if kv_format == "int8" else "")
    assert getattr(storage_of(kv_cache_dtype, server), "name", None) == name
    assert storage_of("auto", server) is None, "a layer that the server skips"


def test_the_scales_of_a_file_reach_the_layer(config, int8_scale_file):
    server = config(kv_format="int8", kv_scales=int8_scale_file.path)
    storage = storage_of("fp8", server)
    assert isinstance(storage, StaticInt8) and storage_of("fp8", server).layers is storage.layers, "read once"
    k, v = storage._scales(SimpleNamespace(layer_name="model.layers.0.self_attn.attn"))
    assert torch.equal(k, int8_scale_file.k) and torch.equal(v, int8_scale_file.v)


def test_a_server_that_int8_does_not_fit_is_refused(config, int8_scale_file, scale_file, served):
    scales = {"kv_format": "int8", "kv_scales": int8_scale_file.path}
    for kind, cache_dtype, options in (
        ("scales", "fp8", {"kv_format": "int8"}),
        ("scales", "fp8", scales | {"kv_scales": scale_file.path}),
        ("scales", "fp8", scales | {"kv_scales": served / "absent.safetensors"}),
        ("scales", INT8, {"kv_scales": int8_scale_file.path}),
        ("profile", "fp8_e5m2", scales),
        ("profile", INT8, scales),
    ):
        assert refused(storage_of, cache_dtype, config(cache_dtype, **options)).kind == kind
    (served / "config.json").write_text("{}")
    assert "another config.json" in refused(storage_of, "fp8", config(**scales)).message


@pytest.mark.parametrize("options", [{"dtype": torch.float32}, {"page": 96}])
def test_int8_needs_16_bits_and_pages_of_a_power_of_two(config, options):
    with pytest.raises(NotImplementedError, match="bfloat16 or float16"):
        storage_of(INT8, config(INT8, **options))
    assert storage_of("fp8", config("fp8", **options)).name == "e4m3"


@pytest.mark.parametrize(
    ("kv_cache_dtype", "kv_format", "is_widened"),
    [("auto", "", False), ("fp8", "", False), ("fp8", "int8", True), (INT8, "", True)],
)
def test_int8_is_widened_where_fp8_is_read_natively(config, monkeypatch, kv_cache_dtype, kv_format, is_widened):
    server = config(kv_cache_dtype, kv_format=kv_format)
    monkeypatch.setattr(cpu_cache, "get_current_vllm_config", lambda: server)
    classes = RoundingCpuBackend.get_impl_cls(), RoundingCpuBackend.get_builder_cls()
    native = (RoundingCpuImpl, CPUAttentionMetadataBuilder)
    assert classes == ((WideningCpuImpl, WideningBuilder) if is_widened else native)


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8", INT8])
def test_an_unknown_format_is_refused(config, monkeypatch, kv_cache_dtype):
    server = config(kv_cache_dtype, kv_format="int4")
    monkeypatch.setattr(cpu_cache, "get_current_vllm_config", lambda: server)
    for choose in (lambda: storage_of(kv_cache_dtype, server), RoundingCpuBackend.get_impl_cls):
        with pytest.raises(ValueError, match="int4: expected e4m3 or int8"):
            choose()


@pytest.mark.parametrize("backend", [RoundingCpuBackend, WideningCpuBackend])
@pytest.mark.parametrize("kind", [FullAttentionSpec, SlidingWindowSpec])
def test_a_page_of_int8_has_room_for_its_scales(backend, kind):
    options = {"block_size": 128, "num_kv_heads": 2, "head_size": 64}
    options |= {"sliding_window": 128} if kind is SlidingWindowSpec else {}
    bytes_of = {}
    for dtype, mode in (
        (torch.bfloat16, KVQuantMode.NONE),
        (torch.uint8, KVQuantMode.FP8_PER_TENSOR),
        (torch.int8, KVQuantMode.INT8_PER_TOKEN_HEAD),
    ):
        spec = backend.customize_spec(kind(**options, dtype=dtype, kv_quant_mode=mode))
        bytes_of[mode] = spec.page_size_bytes // (128 * 2)
    assert list(bytes_of.values()) == [256, 128, 136]
