"""Decode attention with sinks: the public functions, and the dispatch to a CPU or a GPU."""

import torch

from lowp.jit.device import device_of
from lowp.paged.reference import reference
from lowp.sink_decode import checks, launch, resources
from lowp.sink_decode.call import Call


def sink_decode(
    q,
    k_cache,
    v_cache,
    block_table,
    seq_lens,
    sinks,
    *,
    sm_scale,
    window_left=-1,
    k_scale=None,
    v_scale=None,
    layout,
    out=None,
    lse=None,
    workspace=None,
    longest=None,
    overlap=None,
):
    """Attention of each sequence's last 1 to 4 tokens over a paged, quantised KV cache.

    `lowp.paged.reference` has the formula.

    q: [batch, query_tokens, query_heads, head_dim], or [batch, query_heads, head_dim] for one token; bf16 or fp16;
        batch and query tokens may be strided. head_dim 64 or 128. 1 to 4 query tokens, the last positions of the
        sequence, whose keys are in the cache: token i of n sees the keys up to its own position, length - n + i.
    k_cache, v_cache: [pages, page_size, kv_heads, head_dim] (layout NHD) or [pages, kv_heads, page_size, head_dim]
        (HND), bf16, fp16, float8_e4m3fn or int8; equal strides, the last one 1: views of one tensor that holds both are
        taken without a copy. A cache spans up to 64 GiB, the slots of a page up to 4 GiB. page_size 16, 32, 64 or 128;
        1 to 16 query heads per KV head, which times the query tokens are at most 48, or 32 with head_dim 128. With 8
        bits and 64 dims HND is fast, and so is [..., 2 * head_dim] of keys and values in either layout; NHD is slower
        (NOTES.md).
    block_table: [batch, max_pages] int32, rows may be strided; max_pages * page_size under 2^29 tokens. Entries of
        pages that are read must be from 0 to pages - 1: another raises ValueError on CPU, and is not checked on GPU,
        where it reads other memory or fails with an illegal address. Entries of pages past the sequence's end, and of
        pages wholly outside the window, may be anything.
    seq_lens: [batch] int32, tokens in the cache, at most max_pages * page_size; clamped on GPU, raises ValueError on
        CPU. A query token before the first position (of a sequence shorter than the query tokens) sees nothing:
        out = 0, lse = sinks.
    sinks: [query_heads] fp32, natural log units; -inf is a softmax without sink. NaN or +inf, as of a broken
        checkpoint, makes out and lse of that head NaN.
    sm_scale: a positive float. window_left: an int, how many tokens before a query token's own it sees, -1 for all.
    k_scale, v_scale: positive fp32 tensors, stored * scale = value: None, one element, [kv_heads], or one per token
        and head in the cache's shape without head_dim (both of k_scale and v_scale then, of equal strides). int8
        needs both, and its k_scale may be [kv_heads, head_dim], one per channel, beside any v_scale.
    longest: the tokens of the longest sequence, if the caller knows: the launch is chosen for it instead of the table's
        width. Lengths over it are still right, and slower.
    overlap: whether the kernel may start before the previous one on its stream has ended (dependent launch, sm_90 and
        later); None chooses.
    out: like q, contiguous; made if None. lse: q's shape without head_dim, fp32, natural log of the denominator with
        the sink in it; written if given. workspace: from `make_workspace`, for one stream at a time; made if None.

    Returns out. Lengths, table and scales are read on the device only: given out and workspace, a call allocates
    nothing, does not synchronise, and can be captured in a CUDA graph whose replays see other lengths and tables. The
    first call of a configuration (formats, scales, geometry, batch size, the table's width) loads its kernel and may
    have to compile it, under a second (NOTES.md): make that call, or one of `prebuild`, before the capture.
    CPU tensors are computed by the float64 reference.
    Raises TypeError (dtype), ValueError (shape, stride, device) or NotImplementedError (a combination not built).
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    scales = (k_scale, v_scale)
    tensors = (q, k_cache, v_cache, block_table, seq_lens, sinks)
    outputs = (out, lse, workspace)
    call = Call(*tensors, sm_scale, window_left, *scales, layout, *outputs, longest, overlap)
    checks.check_arguments(call)
    if q.device.type == "cpu":
        checks.check_entries(call)
        _compute_reference(call)
    elif call.batch:
        launch.run(call)
    return out


def prebuild(batches, **arguments):
    """Compile and load the kernel of every configuration that `sink_decode` can meet at these batch sizes.

    batches: the batch sizes, any iterable of positive ints. arguments: of one such call of `sink_decode`, of any batch
    size: formats, scales, geometry, the table's width, window_left and longest are taken from it, and it is not run.
    Returns the number of kernels; 0 on a CPU. Raises as sink_decode does.
    """
    scales = {
        "k_scale": None,
        "v_scale": None,
        "window_left": -1,
        "lse": None,
        "workspace": None,
        "out": arguments["q"],
    }
    call = Call(**scales | arguments)
    checks.check_arguments(call)
    if call.q.device.type == "cpu":
        return 0
    return launch.load(call, batches)


def make_workspace(batch, query_heads, kv_heads, head_dim, device, query_tokens=1):
    """Make zeroed scratch memory for calls on one stream: a uint8 tensor on `device`; empty on a CPU, which needs none.

    query_heads, kv_heads, head_dim: as in sink_decode's q and caches. The calls have up to `batch` sequences of any
    length, with up to `query_tokens` query tokens each. Raises NotImplementedError for a GPU below sm_80.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return torch.zeros(0, dtype=torch.uint8)
    size = resources.workspace_bytes(batch, query_heads * query_tokens, kv_heads, head_dim, device_of(device))
    return torch.zeros(size, dtype=torch.uint8, device=device)


def _compute_reference(call):
    options = {"sm_scale": call.sm_scale, "window_left": call.window_left, "layout": call.layout}
    tensors = (call.q, call.k_cache, call.v_cache, call.block_table, call.seq_lens, call.sinks)
    out, lse = reference(*tensors, k_scale=call.k_scale, v_scale=call.v_scale, **options)
    call.out.copy_(out)
    if call.lse is not None:
        call.lse.copy_(lse)
