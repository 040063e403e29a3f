"""The CPU cache writer: correctly rounded FP8 where vLLM's own CPU kernel truncates.

vLLM's CPU kernel drops the low mantissa bits when it stores K and V in FP8 (1.117 becomes 1.0), about twice the
error of rounding to nearest. This writer first rounds K and V to the FP8 grid, in their own dtype; truncating a value
on the grid is exact. The native attention kernel reads the cache as before.
"""

import torch
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, CPUAttentionMetadataBuilder

from vllm_launch.plugin.cpu_storage import FP8_DTYPES, Fp8, is_int8, to_fp8
from vllm_launch.plugin.cpu_widen import WideningCpuBackend

logger = init_logger("vllm.fp8_sinks")


def round_to_grid(x: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """Round x to the nearest FP8 value times `scale`, clamped to the range of the FP8 `dtype`.

    x: any shape, BF16 or FP16; the result has the same shape and dtype. At scale 1 every result is exact in BF16.
    """
    rounded = to_fp8(x, scale, dtype)
    return rounded.to(x.dtype) if scale == 1.0 else (rounded.float() * scale).to(x.dtype)


class RoundingCpuImpl(CPUAttentionBackendImpl):
    """vLLM's CPU attention with a rounding cache write."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fp8_dtype = FP8_DTYPES.get(self.kv_cache_dtype)
        if self.fp8_dtype is not None:
            name = Fp8(self.fp8_dtype).name
            logger.info_once("fp8-sinks: CPU KV cache writer rounds to %s", name)
            logger.info_once("fp8-sinks: CPU attention reads the %s cache: native", name)

    def do_kv_cache_update(self, layer, key, value, kv_cache, slot_mapping):
        """key, value: [tokens, kv_heads, head_dim]; kv_cache: [blocks, kv_heads, block, 2 * head_dim]."""
        if self.fp8_dtype is not None:
            key = round_to_grid(key, layer._k_scale_float, self.fp8_dtype)
            value = round_to_grid(value, layer._v_scale_float, self.fp8_dtype)
        super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)


class RoundingCpuBackend(WideningCpuBackend):
    """vLLM's CPU_ATTN backend with RoundingCpuImpl; int8, for which vLLM has no kernels, is widened."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        return WideningCpuBackend.get_impl_cls() if _serves_int8() else RoundingCpuImpl

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        return WideningCpuBackend.get_builder_cls() if _serves_int8() else CPUAttentionMetadataBuilder


def _serves_int8() -> bool:
    return is_int8(get_current_vllm_config().cache_config.cache_dtype)
