"""The kernels that are measured, and how each is called. Imports a kernel's library only to prepare it."""

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from bench.kernels import vllm_peers
from bench.kernels.grid import GEOMETRY
from bench.kernels.timing import Call
from lowp.paged.shapes import HEAD_DIM, LAYOUT, Shape

if TYPE_CHECKING:
    from lowp.paged.inputs import Inputs

WORKSPACE_BYTES = 512 << 20
OURS = "sink-decode"
PDL, NO_PDL = "PDL", "no PDL"  # programmatic dependent launch: a kernel starts before the previous one has ended


class DecodeKernel(NamedTuple):
    """A decode kernel with one storage format.

    source: the library. sinks: whether it computes them. patched: whether it needs FlashInfer patched by our series.
    prepare: makes a call for each layer, which writes that layer's out, from inputs and a setting. settings: all are
    timed, the fastest counts.
    """

    name: str
    kv_format: str
    source: Literal["lowp", "flashinfer", "vllm"]
    sinks: bool
    patched: bool
    prepare: Callable[["Inputs", str, str, bool], list[Call]]
    settings: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.kv_format}"

    def calls(self, inputs: "Inputs", setting: str) -> list[Call]:
        """A call for each layer of the inputs."""
        return self.prepare(inputs, self.kv_format, setting, self.sinks)

    def skip_reason(self, shape: Shape) -> str | None:
        """Why it is not measured at a shape; None where it is."""
        if shape.table_tokens and self.name != OURS:
            return f"a block table wider than the batch needs is measured only for {OURS}"
        if shape.layout != LAYOUT and self.name != OURS:
            return f"caches in another layout than {LAYOUT} are measured only for {OURS}"
        if not self.sinks and (shape.window_left >= 0 or shape.head_dim != HEAD_DIM):
            return f"the kernel without sinks is measured only with full attention and head_dim {HEAD_DIM}"
        return None


def _ours(inputs: "Inputs", kv_format: str, setting: str, sinks: bool) -> list[Call]:
    """Our decode kernel through its public function, whose argument checks a graph does not replay."""
    from lowp.sink_decode import make_workspace, sink_decode

    shape = inputs.shape
    options = {
        "sm_scale": inputs.sm_scale,
        "window_left": shape.window_left,
        "layout": GEOMETRY.layout,
        "workspace": make_workspace(
            shape.batch, GEOMETRY.query_heads, GEOMETRY.kv_heads, shape.head_dim, inputs.seq_lens.device
        ),
    }
    return [
        partial(sink_decode, q, k, v, inputs.block_table, inputs.seq_lens, inputs.sinks, out=out, **options)
        for q, (k, v), out in zip(inputs.q, inputs.caches[kv_format], inputs.out, strict=True)
    ]


def _fa2(inputs: "Inputs", kv_format: str, setting: str, sinks: bool) -> list[Call]:
    """FlashInfer's FA2 through its decode wrapper for CUDA graphs, planned once for all layers, as vLLM does."""
    import torch
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    page_size, seq_lens = GEOMETRY.page_size, inputs.seq_lens
    pages = (seq_lens + page_size - 1) // page_size
    indptr = torch.nn.functional.pad(pages.cumsum(0), (1, 0)).int()
    used = torch.arange(inputs.block_table.shape[1], device=seq_lens.device) < pages[:, None]
    indices = inputs.block_table[used]
    last_page = (seq_lens - 1) % page_size + 1
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
        inputs.shape.head_dim,
        page_size,
        window_left=inputs.shape.window_left,
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
        "window_left": inputs.shape.window_left,
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
    """Zeroed scratch memory for each family of kernels: XQA keeps semaphores in its own."""
    import torch

    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")


KERNELS = [
    DecodeKernel(OURS, "bf16", "lowp", True, False, _ours, ("its own",)),
    DecodeKernel(OURS, "e4m3", "lowp", True, False, _ours, ("its own",)),
    DecodeKernel("fa2-no-sinks", "bf16", "flashinfer", False, False, _fa2, (PDL, NO_PDL)),
    DecodeKernel("fa2-sinks", "bf16", "flashinfer", True, True, _fa2, (PDL, NO_PDL)),
    DecodeKernel("fa2-sinks", "e4m3", "flashinfer", True, True, _fa2, (PDL, NO_PDL)),
    DecodeKernel("xqa-sinks", "bf16", "flashinfer", True, False, _xqa, (PDL, NO_PDL)),
    DecodeKernel("xqa-sinks", "e4m3", "flashinfer", True, False, _xqa, (PDL, NO_PDL)),
    DecodeKernel("vllm-fa3", "bf16", "vllm", True, False, vllm_peers.fa3, vllm_peers.FA3_SETTINGS),
    DecodeKernel("vllm-fa3", "e4m3", "vllm", True, False, vllm_peers.fa3, vllm_peers.FA3_SETTINGS),
    DecodeKernel("vllm-triton", "bf16", "vllm", True, False, vllm_peers.triton, ("vLLM's own",)),
    DecodeKernel("vllm-triton", "e4m3", "vllm", True, False, vllm_peers.triton, ("vLLM's own",)),
]


def names() -> list[str]:
    """The kernels' names, each once."""
    return list(dict.fromkeys(kernel.name for kernel in KERNELS))
