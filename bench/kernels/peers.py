"""The kernels that are measured, ours and its peers, and how each is called. Imports a library only to call it."""

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from bench.kernels import vllm_peers
from bench.kernels.grid import BASE, GEOMETRY, INT8, INT8_STATIC, SERVED, Point
from bench.kernels.timing import Call
from lowp.paged.shapes import HEAD_DIM, LAYOUT, QUERY_FORMAT, Shape

if TYPE_CHECKING:
    from lowp.paged.inputs import Inputs

WORKSPACE_BYTES = 512 << 20
OURS = "sink-decode"
SERVED_PEERS = ("fa2-sinks", "xqa-sinks", "vllm-fa3")  # those of the server's and the random shapes
PDL, NO_PDL = "PDL", "no PDL"  # programmatic dependent launch: a kernel starts before the previous one has ended


class DecodeKernel(NamedTuple):
    """A decode kernel with one storage format.

    source: its library. sinks: whether it computes them. patched: whether it needs FlashInfer patched by our series.
    prepare: makes a call for each layer, which writes that layer's out, from inputs, storage format, setting and sinks.
    settings: names of ways to call it; all are timed, and a row has the fastest.
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

    def skip_reason(self, point: Point) -> str | None:
        """Why it is not measured at a point of a grid; None where it is."""
        if point.grid == "standard":
            return self._standard_skip_reason(point.shape)
        # Bytes and launches of int8-static are E4M3's: fewer shapes show it, and keep the result small.
        everywhere = self.name == OURS and (self.kv_format != INT8_STATIC or point.grid == "random")
        if everywhere or (point.peers and self.name in (OURS, *SERVED_PEERS)):
            return None
        return f"no kernel of the {point.grid} grid at this shape"

    def _standard_skip_reason(self, shape: Shape) -> str | None:
        if self.kv_format in (INT8, INT8_STATIC) and not (shape.plain or shape.layout == SERVED["layout"]):
            return f"an {INT8} cache is measured only at plain and interleaved shapes"
        if self.name == OURS:
            return None
        if shape.table_tokens:
            return f"a block table wider than the batch needs is measured only for {OURS}"
        if shape.layout != LAYOUT:
            return f"caches in another layout than {LAYOUT} are measured only for {OURS}"
        if shape.query_tokens > 1 and self.source != "vllm":
            return "its decode call has one query token"
        if shape.query_format != QUERY_FORMAT and (self.kv_format == BASE or self.name == "vllm-fa3"):
            return "query and cache have one format, or the query is quantised"
        if not self.sinks and Shape(shape.lengths) != shape:
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
            shape.batch,
            GEOMETRY.query_heads,
            GEOMETRY.kv_heads,
            shape.head_dim,
            inputs.seq_lens.device,
            shape.query_tokens,
        ),
    }
    calls = []
    for layer, (k, v) in enumerate(inputs.caches[kv_format]):
        arguments = (inputs.q[layer], k, v, inputs.block_table, inputs.seq_lens, inputs.sinks)
        scales = inputs.layer_scales(kv_format, layer)
        calls.append(partial(sink_decode, *arguments, out=inputs.out[layer], **scales, **options))
    return calls


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
    DecodeKernel(OURS, "int8", "lowp", True, False, _ours, ("its own",)),
    DecodeKernel(OURS, "int8-static", "lowp", True, False, _ours, ("its own",)),
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
