"""The engines that are compared: vLLM's arguments, the plugin's environment, and what each must resolve to."""

from typing import NamedTuple

from vllm_launch.decoder.contract import DECODER, PLUGIN

FP8 = {"kv_cache_dtype": "fp8"}
SKIP_SLIDING = {"kv_cache_dtype_skip_layers": ["sliding_window"]}
CUSTOM = {"attention_backend": "CUSTOM"}
# The query stays BF16, as with our decoders.
FLASHINFER = {"attention_config": {"backend": "FLASHINFER", "disable_flashinfer_q_quantization": True}}


class Variant(NamedTuple):
    """An engine. kv_cache: as bench.roofline names it. backend: None is any that vLLM picks.

    decoder: "stock", or our plugin's. releases: of vLLM that have it; empty is all.
    """

    name: str
    kv_cache: str
    arguments: dict
    backend: str | None = None
    decoder: str = "stock"
    releases: tuple[str, ...] = ()

    @property
    def kv_format(self) -> str:
        return "bf16" if self.kv_cache == "bf16" else "e4m3"

    @property
    def environment(self) -> dict[str, str]:
        """The plugin's variables; none for stock vLLM."""
        return {} if self.decoder == "stock" else {PLUGIN: "1", DECODER: self.decoder}


BASE = Variant("stock-bf16", "bf16", {})
VARIANTS = [
    BASE,
    Variant("plugin-fp8", "fp8", CUSTOM | FP8, "CUSTOM", "lowp"),
    Variant("plugin-bf16", "bf16", CUSTOM, "CUSTOM", "lowp"),
    Variant("stock-fp8", "fp8", FP8),
    Variant("plugin-fp8-skip-sliding", "fp8-skip-sliding", CUSTOM | FP8 | SKIP_SLIDING, "CUSTOM", "lowp"),
    Variant("stock-fp8-skip-sliding", "fp8-skip-sliding", FP8 | SKIP_SLIDING),
    Variant("plugin-fp8-flashinfer", "fp8", CUSTOM | FP8, "CUSTOM", "flashinfer"),
    Variant("triton-fp8", "fp8", {"attention_backend": "TRITON_ATTN"} | FP8, "TRITON_ATTN"),
    Variant("flashinfer-fp8", "fp8", FLASHINFER | FP8, "FLASHINFER", releases=("0.33",)),
]
NAMES = [variant.name for variant in VARIANTS]


def named(name: str) -> Variant:
    """The variant of that name; raises KeyError."""
    return {variant.name: variant for variant in VARIANTS}[name]


def has(variant: Variant, vllm_version: str) -> bool:
    """Whether that release of vLLM has the variant."""
    return not variant.releases or ".".join(vllm_version.split(".")[:2]) in variant.releases
