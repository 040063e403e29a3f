"""The engines that are compared: vLLM's arguments, the plugin's environment, and what each must resolve to."""

from typing import NamedTuple

from vllm_launch.decoder.contract import DECODER, INT8, KV_FORMAT, PLUGIN

FP8 = {"kv_cache_dtype": "fp8"}
SKIP_SLIDING = {"kv_cache_dtype_skip_layers": ["sliding_window"]}
CUSTOM = {"attention_backend": "CUSTOM"}
# The query stays BF16, as with our decoders.
FLASHINFER = {"attention_config": {"backend": "FLASHINFER", "disable_flashinfer_q_quantization": True}}


class Variant(NamedTuple):
    """An engine. kv_format: of full layers, as our plugin records it. backend: None is any that vLLM picks.

    decoder: "stock", or our plugin's. releases: of vLLM that have it; empty is all.
    """

    name: str
    kv_format: str
    arguments: dict
    backend: str | None = None
    decoder: str = "stock"
    releases: tuple[str, ...] = ()

    @property
    def kv_cache(self) -> str:
        """The bytes of its cache, as bench.roofline names them."""
        values = {"e4m3": "fp8", "int8-static": "fp8"}.get(self.kv_format, self.kv_format)
        return f"{values}-skip-sliding" if SKIP_SLIDING.items() <= self.arguments.items() else values

    @property
    def environment(self) -> dict[str, str]:
        """The plugin's variables, but for the scale file of int8-static; none for stock vLLM."""
        if self.decoder == "stock":
            return {}
        kv_format = {KV_FORMAT: "int8"} if self.kv_format == "int8-static" else {}
        return {PLUGIN: "1", DECODER: self.decoder} | kv_format


BASE = Variant("stock-bf16", "bf16", {})
VARIANTS = [
    BASE,
    Variant("plugin-fp8", "e4m3", CUSTOM | FP8, "CUSTOM", "lowp"),
    Variant("plugin-bf16", "bf16", CUSTOM, "CUSTOM", "lowp"),
    Variant("stock-fp8", "e4m3", FP8),
    Variant("plugin-int8", "int8", CUSTOM | {"kv_cache_dtype": INT8}, "CUSTOM", "lowp"),
    Variant("plugin-int8-static", "int8-static", CUSTOM | FP8, "CUSTOM", "lowp"),
    Variant("plugin-fp8-skip-sliding", "e4m3", CUSTOM | FP8 | SKIP_SLIDING, "CUSTOM", "lowp"),
    Variant("stock-fp8-skip-sliding", "e4m3", FP8 | SKIP_SLIDING),
    Variant("plugin-fp8-flashinfer", "e4m3", CUSTOM | FP8, "CUSTOM", "flashinfer"),
    Variant("triton-fp8", "e4m3", {"attention_backend": "TRITON_ATTN"} | FP8, "TRITON_ATTN"),
    Variant("flashinfer-fp8", "e4m3", FLASHINFER | FP8, "FLASHINFER", releases=("0.33",)),
]
NAMES = [variant.name for variant in VARIANTS]


def named(name: str) -> Variant:
    """The variant of that name; raises KeyError."""
    return {variant.name: variant for variant in VARIANTS}[name]


def has(variant: Variant, vllm_version: str) -> bool:
    """Whether that release of vLLM has the variant."""
    return not variant.releases or ".".join(vllm_version.split(".")[:2]) in variant.releases
