"""The attention backend that vLLM picks for a model with sinks, and its cost: one entry per GPU family and release.

The choices are read from vLLM's sources. The figures of decode kernels are those of the newest kernel bench of an H200
in results/, over its grid (test_backends.py recomputes them); those of the CPU were measured before there were result
files. An entry for a GPU that was not measured says so.
"""

from flashinfer_patches.strict import Strict


class Choice(Strict):
    """The backend of one vLLM release on one family of devices.

    backend: as vLLM names it. bf16, fp8: what computes decode attention with that KV cache, and at what cost;
    fp8_widened: the same on a CPU without FP8 kernels. cubins: whether it needs NVIDIA's prebuilt kernels, packaged or
    from the network. better: what to do instead, if there is a better choice.
    """

    backend: str
    bf16: str
    fp8: str
    fp8_widened: str | None = None
    cubins: bool = False
    better: str | None = None


_FA3 = Choice(
    backend="FLASH_ATTN",
    bf16="FlashAttention 3. Measured on an H200: relative error 2.3e-3",
    fp8=(
        "FlashAttention 3 with the query in FP8 too: twice the KV capacity, no speedup. Measured on an H200 with vLLM"
        " 0.26.0: decode attention takes 0.87-1.02 times BF16's time; relative error"
        " 3.6-3.9e-2, 16 times BF16's"
    ),
)
_TRTLLM = Choice(
    backend="FLASHINFER",
    bf16="FlashInfer's trtllm-gen kernels. Not measured on this GPU",
    fp8="FlashInfer's trtllm-gen kernels with the query in FP8 too. Not measured on this GPU",
    cubins=True,
)

# By device family and release (major.minor).
CHOICES = {
    ("cpu", "0.32"): Choice(
        backend="CPU_ATTN",
        bf16="vLLM's CPU kernel. Measured on a CPU: mean |Δ log p| 0.005-0.007 against fp32",
        fp8=(
            "vLLM's CPU kernel: twice the KV capacity, no speedup. Measured on a CPU: mean |Δ log p| 0.013-0.018"
            " with our rounding cache writer, 0.030-0.040 as stock vLLM truncates"
        ),
        fp8_widened=(
            "vLLM has no FP8 kernel for this CPU, which has neither AVX-512 nor AMX: our plugin stores K and V in FP8,"
            " rounded, and widens them at each step for its BF16 kernel: twice the KV capacity, the accuracy of the FP8"
            " kernel, slower decode"
        ),
    ),
    ("sm90", "0.26"): _FA3,
    ("sm90", "0.33"): _FA3,
    ("sm100", "0.26"): _TRTLLM,
    ("sm100", "0.33"): _TRTLLM,
    ("sm12x", "0.26"): Choice(
        backend="TRITON_ATTN",
        bf16=(
            "vLLM's Triton kernel. Not measured on this GPU. Measured on an H200: 0.66-7.25 times the time of"
            " FlashAttention 3, worst at long contexts"
        ),
        fp8=(
            "vLLM's Triton kernel with query and probabilities in FP8 too: twice the KV capacity. Not measured on this"
            " GPU. Measured on an H200 with a BF16 query: slower, 1.04-1.60 times the time of its own BF16"
        ),
        better="use vLLM 0.33, which decodes with FlashInfer's XQA kernel here: make setup VLLM=0.33",
    ),
    ("sm12x", "0.33"): Choice(
        backend="FLASHINFER",
        bf16=(
            "FlashInfer: XQA decode, FA2 prefill with sinks. Not measured on this GPU. Measured on an H200: 0.75-1.15"
            " times the time of FlashAttention 3, relative error 3.4-4.7e-3"
        ),
        fp8=(
            "FlashInfer: XQA decode, FA2 prefill with sinks, BF16 query: twice the KV capacity. Not measured on this"
            " GPU. Measured on an H200, where XQA computes in FP8: 0.36-1.27 times the time of its own BF16, slower"
            " for few requests at long context, relative error 3.6-3.9e-2"
        ),
        cubins=True,
    ),
}


def choice(family: str, vllm_version: str) -> Choice | None:
    """The choice of a vLLM version on a device family (`cpu`, `sm90`, ...); None if it is not known."""
    return CHOICES.get((family, ".".join(vllm_version.split(".")[:2])))
