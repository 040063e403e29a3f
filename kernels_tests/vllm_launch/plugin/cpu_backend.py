"""The backend in place of vLLM's own on a CPU: all of it but the kernels, whose float64 references run.

For vLLM 0.32's CPU build, whose interface is that of 0.33.
"""

from kernels_tests.vllm_launch.plugin.steps import dense_attention
from vllm_launch.plugin.attention import vllm_0_33
from vllm_launch.plugin.attention.impl import SinkImpl as CudaImpl


class SinkImpl(CudaImpl):
    attention = staticmethod(dense_attention)


class SinkBackend(vllm_0_33.SinkBackend):
    @staticmethod
    def get_name() -> str:
        return "CPU_ATTN"

    @staticmethod
    def get_impl_cls() -> type[SinkImpl]:
        return SinkImpl
