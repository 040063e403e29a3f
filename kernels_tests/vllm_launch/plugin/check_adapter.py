"""Our backend inside a real vLLM, without a GPU: registered, selected, refused, its layers and builders run on a CPU.

    PYTHONPATH=.:FOLDER python -m kernels_tests.vllm_launch.plugin.check_adapter

FOLDER: a vLLM CUDA wheel, unpacked (its Python files are enough): run it for 0.26.0 and for 0.33.0. Without one it is
the installed vLLM, whose version may have no adapter: then that of 0.33 is used, and its refusal is checked.
Prints a line for each part, exits with 1 at the first that fails.
"""

import os
import sys
import tempfile
from pathlib import Path

from kernels_tests.vllm_launch.plugin import cuda_vllm

os.environ |= {"FP8_SINKS_PLUGIN": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
for variable in ("FP8_SINKS_KV_SCALES", "FP8_SINKS_KV_FORMAT"):
    os.environ.pop(variable, None)
cuda_vllm.install()

import torch  # noqa: E402
import vllm  # noqa: E402
from vllm.config import set_current_vllm_config  # noqa: E402
from vllm.engine.arg_utils import EngineArgs  # noqa: E402
from vllm.model_executor.layers.attention import Attention  # noqa: E402
from vllm.model_executor.models.registry import ModelRegistry  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402
from vllm.platforms.interface import DeviceCapability  # noqa: E402
from vllm.v1.attention.backend import AttentionType  # noqa: E402
from vllm.v1.attention.backends.registry import AttentionBackendEnum  # noqa: E402
from vllm.v1.attention.selector import AttentionSelectorConfig  # noqa: E402

from flashinfer_patches.errors import Problem  # noqa: E402
from kernels_tests.vllm_launch import scale_files  # noqa: E402
from kernels_tests.vllm_launch.plugin import vllm_caches  # noqa: E402
from kernels_tests.vllm_launch.plugin.steps import (  # noqa: E402
    KV_DTYPES,
    Server,
    Setup,
    assert_close,
    dense_attention,
    make_step,
    run,
    uneven_scales,
)
from kernels_tests.vllm_launch.plugin.storage import poison  # noqa: E402
from vllm_launch import plugin  # noqa: E402
from vllm_launch.decoder import contract  # noqa: E402

MODEL = Path(__file__).parents[3] / "models" / "tiny_gpt_oss"
CUSTOM = AttentionBackendEnum.CUSTOM
SELECTED = {
    "head_size": 64,
    "dtype": torch.bfloat16,
    "kv_cache_dtype": "fp8",
    "block_size": 16,
    "has_sink": True,
    "attn_type": AttentionType.DECODER,
    "has_sliding_window": True,
}
REFUSED = {
    "head size": {"head_size": 80},
    "FP16": {"dtype": torch.float16},
    "E5M2": {"kv_cache_dtype": "fp8_e5m2"},
    "FP8 per token and head": {"kv_cache_dtype": "fp8_per_token_head"},
    "INT4": {"kv_cache_dtype": "int4_per_token_head"},
    "page of 8": {"block_size": 8},
    "MLA": {"use_mla": True},
    "no sinks": {"has_sink": False},
    "encoder": {"attn_type": AttentionType.ENCODER},
    "non-causal": {"use_non_causal": True},
    "scales per head of a checkpoint": {"use_per_head_quant_scales": True},
    "DCP": {"use_dcp": True},
    "adaptive verification": {"use_adaptive_verification": True},
}


SKIP = {"kv_cache_dtype_skip_layers": ["sliding_window"]}
LAYERS = 4  # of MODEL
CAPACITIES: dict[str, int] = {}  # tokens of each KV format in the same memory


def select(**changes) -> str:
    config = AttentionSelectorConfig(**SELECTED | changes)
    return current_platform.get_attn_backend_cls(CUSTOM, attn_selector_config=config)


def check_registration() -> str:
    plugin.register()
    plugin.register()
    assert CUSTOM.get_path() == plugin.CUDA_BACKEND
    try:
        backend = CUSTOM.get_class()
    except Problem as problem:
        assert "0.26, 0.33" in problem.message and vllm.__version__ in problem.message
        backend_path = "vllm_launch.plugin.attention.vllm_0_33.SinkBackend"
        plugin.CUDA_BACKEND = backend_path
        CUSTOM.clear_override()
        plugin.register()
        return f"{vllm.__version__} has no adapter: refused; continues with {backend_path}"
    expected = "vllm_" + "_".join(vllm.__version__.split(".")[:2])
    assert backend.__module__.endswith(expected), backend.__module__
    return f"{backend.__module__}.{backend.__qualname__}, registered twice"


def check_selection() -> str:
    for kv_dtype in contract.KV_CACHE_DTYPES:
        for head_size in (64, 128):
            assert select(kv_cache_dtype=kv_dtype, head_size=head_size).endswith(".SinkBackend")
    reasons = {}
    for name, changes in REFUSED.items():
        if not set(changes) <= set(AttentionSelectorConfig._fields):
            continue  # this version has no such setting
        try:
            select(**changes)
        except ValueError as error:
            reasons[name] = str(error).partition("Reason: ")[2]
        assert reasons.get(name), name
    platform = type(current_platform)
    for name, capability in (("SM75", (7, 5)), ("SM120", (12, 0))):
        capability = DeviceCapability(*capability)
        platform.get_device_capability = classmethod(lambda cls, device_id=0, current=capability: current)
        try:
            select()
        except ValueError as error:
            reasons[name] = str(error).partition("Reason: ")[2]
    assert "FA2" in reasons["SM75"] and "fp8-sinks certify" in reasons["SM120"]
    os.environ[contract.CERTIFYING] = "1"
    assert select().endswith(".SinkBackend")
    del os.environ[contract.CERTIFYING]
    platform.get_device_capability = classmethod(lambda cls, device_id=0: DeviceCapability(9, 0))
    return f"refused: {reasons}"


def engine_config(**arguments):
    from vllm.model_executor.models.gpt_oss import GptOssForCausalLM

    # The class itself: inspecting a class given by name starts a process, which has no made platform.
    ModelRegistry.register_model("GptOssForCausalLM", GptOssForCausalLM)
    arguments = {"max_model_len": 2048, "max_num_seqs": 8, "max_num_batched_tokens": 1024} | arguments
    return EngineArgs(model=str(MODEL), attention_backend="CUSTOM", **arguments).create_engine_config()


def make_layer(config, window: int | None, setup: Setup) -> Attention:
    """Make a layer as models/gpt_oss.py does, and load it."""
    number = 1 if window is None else 0
    torch.set_default_dtype(torch.bfloat16)  # as while vLLM makes a model
    layer = Attention(
        setup.heads,
        setup.head_dim,
        setup.head_dim**-0.5,
        num_kv_heads=setup.kv_heads,
        cache_config=config.cache_config,
        quant_config=None,
        per_layer_sliding_window=window,
        attn_type=AttentionType.DECODER,
        prefix=f"model.layers.{number}.self_attn.attn",
        sinks=torch.nn.Parameter(torch.linspace(-2, 3, setup.heads).bfloat16(), requires_grad=False),
    )
    torch.set_default_dtype(torch.float32)
    layer.process_weights_after_loading(torch.bfloat16)
    layer.impl.attention = dense_attention
    return layer


def make_layers(config, kv_dtype: str) -> dict[str, Attention]:
    """Make a layer with a window and one without, as the model has them."""
    layers = [make_layer(config, window, Setup(window, kv_dtype)) for window in (128, None)]
    return {layer.layer_name: layer for layer in layers}


def check_steps(kv_format: str, **arguments) -> str:
    """Run steps through layers, builders and caches that vLLM has made."""
    config = engine_config(kv_cache_dtype=KV_DTYPES[kv_format], **arguments)
    with set_current_vllm_config(config):
        layers = make_layers(config, KV_DTYPES[kv_format])
        caches, capacity = vllm_caches.allocate(config)
        for name, layer in layers.items():
            cache, builder, spec = caches[name]
            skipped = "kv_cache_dtype_skip_layers" in arguments and layer.sliding_window is not None
            assert layer.impl.kv_format == ("bf16" if skipped else kv_format)
            check_pages(layer.impl, cache, spec)
            poison(layer.impl, cache)
            setup = Setup(layer.sliding_window, layer.kv_cache_dtype)
            server = Server(setup, layer.impl, builder, layer, cache, torch.Generator().manual_seed(0))
            for requests in ([(1, 300), (1, 5)], [(1, 200), (30, 230), (40, 40)]):
                step = make_step(server, requests)
                assert_close(run(server, step), step.expected)
    if not arguments:
        CAPACITIES[kv_format] = capacity
    support = builder.get_cudagraph_support(config, spec).name
    shape, threshold = tuple(cache.shape[1:]), builder.reorder_batch_threshold
    return (
        f"{cache.dtype} pages of {shape}, {spec.page_size_bytes} bytes; {capacity} tokens in "
        f"{vllm_caches.MEMORY_BYTES >> 20} MiB; reorders up to {threshold} query tokens, CUDA graphs {support}"
    )


def check_pages(layer_impl, cache: torch.Tensor, spec) -> None:
    """The views of a page are the bytes that vLLM budgets for it, each one once, in whole lines; and no other bytes."""
    views = [view for view in layer_impl.views(cache) if view is not None and view.dim() > 2]
    memory = torch.empty(0, dtype=torch.uint8).set_(cache.untyped_storage())
    memory.zero_()
    for view in views:
        assert view.untyped_storage().data_ptr() == memory.data_ptr(), "a copy"
        view.view(torch.uint8).add_(1)
    first = cache.storage_offset() * cache.itemsize
    stride = cache.stride(0) * cache.itemsize
    blocks = spec.block_size // cache.shape[2]  # pages of a block
    budget = spec.unpadded_page_size_bytes // blocks
    for page in (0, 1, len(cache) - 1):
        start = first + page * stride
        content, padding = memory[start : start + budget], memory[start + budget : start + stride]
        assert (content == 1).all() and not padding.any(), f"page {page}"
    assert int(memory.sum()) == len(cache) * budget and stride * blocks == spec.page_size_bytes
    k = views[0]
    line = 2 * k.shape[-1] * k.itemsize
    assert line % 128 == 0 and (k.storage_offset() * k.itemsize) % 128 == 0
    assert all(size * k.itemsize % line == 0 for size in k.stride()[1:3]) and stride % 128 == 0


def check_int8_static(**arguments) -> str:
    """Serve with a scale file whose layers differ."""
    with tempfile.TemporaryDirectory() as folder:
        path, scales = Path(folder) / "scales.safetensors", uneven_scales(Setup())
        k, v = ([scale * (1 + n / 8) for n in range(LAYERS)] for scale in scales)
        scale_files.write(path, (MODEL / "config.json").read_bytes(), k, v)
        os.environ |= {contract.KV_FORMAT: "int8", contract.KV_SCALES: str(path)}
        try:
            return check_steps("int8-static", **arguments)
        finally:
            del os.environ[contract.KV_FORMAT], os.environ[contract.KV_SCALES]


def check_capacity() -> str:
    """Against BF16: 2.00x with static scales, 1.88x with those in the pages."""
    ratios = {name: tokens / CAPACITIES["bf16"] for name, tokens in CAPACITIES.items()}
    assert ratios["int8"] >= 1.88 and min(ratios["int8-static"], ratios["e4m3"]) >= 1.995, ratios
    return ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())


def check_drafts() -> str:
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    config = engine_config(kv_cache_dtype="fp8", speculative_config=ngram)
    with set_current_vllm_config(config):
        layer = make_layer(config, None, Setup(kv_dtype="fp8"))
        spec = layer.get_kv_cache_spec(config)
        builder = layer.get_attn_backend().get_builder_cls()(spec, [layer.layer_name], config, torch.device("cpu"))
        assert builder.reorder_batch_threshold == 4
    config = engine_config(kv_cache_dtype="fp8", speculative_config=ngram | {"num_speculative_tokens": 4})
    with set_current_vllm_config(config):
        try:
            make_layer(config, None, Setup(kv_dtype="fp8"))
        except NotImplementedError as error:
            return str(error)
    raise AssertionError("4 drafts are not refused")


def check_layout() -> str:
    backend = CUSTOM.get_class()
    if hasattr(backend, "supported_kv_cache_layouts"):
        (layout,) = backend.supported_kv_cache_layouts()
        assert layout.layer_view_order == (0, 1, 2, 3)
        return layout.name
    from vllm.v1.attention.backends.utils import get_kv_cache_layout

    assert get_kv_cache_layout() == backend.get_required_kv_cache_layout() == "HND"
    assert backend.get_kv_cache_shape(7, 16, 2, 64, "fp8") == (7, 2, 16, 128)
    assert backend.get_kv_cache_shape(7, 16, 2, 64, contract.INT8) == (7, 2, 16, 136)
    assert backend.get_kv_cache_block_dim(16, 2, 64, contract.INT8) == 0 and backend.indexes_kv_by_block_stride()
    return "HND"


def main() -> None:
    print(f"vLLM {vllm.__version__}", flush=True)
    checks = {
        "registration": check_registration,
        "selection": check_selection,
        **{f"steps, {name}": lambda name=name: check_steps(name) for name in ("bf16", "e4m3", "int8")},
        "steps, int8-static": check_int8_static,
        "steps, int8, skip layers": lambda: check_steps("int8", **SKIP),
        "steps, int8-static, skip layers": lambda: check_int8_static(**SKIP),
        "steps, int8, pages of 64": lambda: check_steps("int8", block_size=64),
        "steps, int8, blocks of two pages": lambda: check_steps("int8", block_size=256),
        "capacity": check_capacity,
        "drafts": check_drafts,
        "layout": check_layout,
    }
    for name, check in checks.items():
        print(f"{name}: {check()}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
