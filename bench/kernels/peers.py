"""The kernels that are measured, and how each is called. Imports FlashInfer only when a kernel is prepared."""

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple

from bench.kernels.grid import GEOMETRY
from bench.kernels.timing import Call

if TYPE_CHECKING:
    from bench.kernels.inputs import Inputs

WORKSPACE_BYTES = 512 << 20


class Kernel(NamedTuple):
    """A decode kernel with one storage format.

    sinks: whether it computes them. patched: whether FlashInfer needs our series for it. prepare: from inputs and a
    setting, a call for each layer, which writes that layer's out. settings: all are tried, the fastest counts.
    """

    name: str
    kv_format: str
    sinks: bool
    patched: bool
    prepare: Callable[["Inputs", str, str, bool], list[Call]]
    settings: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.kv_format}"

    def calls(self, inputs: "Inputs", setting: str) -> list[Call]:
        """A call for each layer of the inputs."""
        return self.prepare(inputs, self.kv_format, setting, self.sinks)


def _fa2(inputs: "Inputs", kv_format: str, setting: str, sinks: bool) -> list[Call]:
    """FlashInfer's FA2 through its decode wrapper; planned once for all layers, as vLLM does, for CUDA graphs."""
    import torch
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    batch, pages = inputs.block_table.shape
    device = inputs.block_table.device
    indptr = torch.arange(batch + 1, dtype=torch.int32, device=device) * pages
    indices = inputs.block_table.flatten()
    last_page = torch.full((batch,), (inputs.shape.context - 1) % GEOMETRY.page_size + 1, device=device).int()
    wrapper = BatchDecodeWithPagedKVCacheWrapper(
        _workspace("fa2"),
        GEOMETRY.layout,
        use_cuda_graph=True,
        use_tensor_cores=True,
        backend="fa2",
        paged_kv_indptr_buffer=indptr.clone(),
        paged_kv_indices_buffer=indices.clone(),
        paged_kv_last_page_len_buffer=last_page.clone(),
    )
    wrapper.plan(
        indptr,
        indices,
        last_page,
        GEOMETRY.query_heads,
        GEOMETRY.kv_heads,
        GEOMETRY.head_dim,
        GEOMETRY.page_size,
        q_data_type=inputs.q[0].dtype,
        kv_data_type=inputs.caches[kv_format][0][0].dtype,
        sm_scale=inputs.sm_scale,
        **({"use_sinks": True} if sinks else {}),
    )
    options = {"sinks": inputs.sinks} if sinks else {}
    return [
        partial(wrapper.run, q, kv, out=out, enable_pdl=setting == PDL, **options)
        for q, kv, out in zip(inputs.q, inputs.caches[kv_format], inputs.out, strict=True)
    ]


def _xqa(inputs: "Inputs", kv_format: str, setting: str, sinks: bool) -> list[Call]:
    """FlashInfer's XQA; with an FP8 cache on SM90 it quantises the query and the probabilities too."""
    from flashinfer.decode import trtllm_batch_decode_with_kv_cache

    options = {
        "workspace_buffer": _workspace("xqa"),
        "block_tables": inputs.block_table,
        "seq_lens": inputs.seq_lens,
        "max_seq_len": inputs.shape.context,
        "bmm1_scale": inputs.sm_scale,
        "bmm2_scale": 1.0,
        "sinks": inputs.sinks if sinks else None,
        "kv_layout": GEOMETRY.layout,
        "enable_pdl": setting == PDL,
        "backend": "xqa",
    }
    return [
        partial(trtllm_batch_decode_with_kv_cache, q, kv, out=out, **options)
        for q, kv, out in zip(inputs.q, inputs.caches[kv_format], inputs.out, strict=True)
    ]


@cache
def _workspace(_owner: str):
    """Zeroed scratch memory, one for each family of kernels: XQA keeps semaphores in its own."""
    import torch

    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")


PDL, NO_PDL = "PDL", "no PDL"  # programmatic dependent launch: a kernel starts before the one ahead of it has ended
KERNELS = [
    Kernel("fa2-no-sinks", "bf16", False, False, _fa2, (PDL, NO_PDL)),
    Kernel("fa2-sinks", "bf16", True, True, _fa2, (PDL, NO_PDL)),
    Kernel("fa2-sinks", "e4m3", True, True, _fa2, (PDL, NO_PDL)),
    Kernel("xqa-sinks", "bf16", True, False, _xqa, (PDL, NO_PDL)),
    Kernel("xqa-sinks", "e4m3", True, False, _xqa, (PDL, NO_PDL)),
]


def names() -> list[str]:
    """The kernels' names, each once."""
    return list(dict.fromkeys(kernel.name for kernel in KERNELS))
