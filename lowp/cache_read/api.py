"""Read out of the paged cache: the public function, and the dispatch to a CPU or a GPU."""

from lowp.cache_read import checks, launch, reference
from lowp.cache_read.call import Call


def cache_read(
    k_cache,
    v_cache,
    block_table,
    ends,
    cu_out,
    k_out,
    v_out,
    *,
    starts=None,
    k_scale=None,
    v_scale=None,
    layout,
    overlap=False,
):
    """Dequantise tokens of each sequence out of a paged cache into contiguous rows. `reference` has the formula.

    k_cache, v_cache: [pages, page_size, kv_heads, head_dim] (layout NHD) or [pages, kv_heads, page_size, head_dim]
        (HND), bf16, fp16, float8_e4m3fn or int8; equal strides, the last one 1: views of one tensor that holds both are
        taken without a copy. page_size a power of two, head_dim a multiple of 32.
    block_table: [sequences, max_pages] int32, rows may be strided. Entries of pages without a token that is read are
        never followed. Entries of pages that are read must be from 0 to pages - 1: another raises ValueError on CPU; on
        GPU its rows become NaN.
    starts, ends: [sequences] int32: tokens starts[i] to ends[i] - 1 are read, none if that is no token; starts is 0 if
        None. ends at most max_pages * page_size; clamped on GPU, raises ValueError on CPU, and so are negative ones.
    cu_out: [sequences + 1] int32, not decreasing: token starts[i] goes to row cu_out[i], the next one to the next row.
        Rows of a sequence past its tokens, up to cu_out[i + 1], stay as they are: room for the keys of the chunk. A
        sequence with fewer rows than tokens is cut off on GPU, raises ValueError on CPU, and so are rows past k_out's.
    k_out, v_out: [rows, kv_heads, head_dim], bf16 or fp16; rows may be strided. On GPU the time depends a little on
        their number: where the host knows a bound of cu_out[-1], give views of as many rows.
    k_scale, v_scale: positive fp32 tensors, stored * scale = value: None, one element, [kv_heads], or one per token and
        head in the cache's shape without head_dim, of any strides; int8 needs both, and its k_scale may be [kv_heads,
        head_dim], one per channel. 16 bits have none.
    overlap: on GPU, let the kernel start before the previous one on the stream has ended (dependent launch): faster if
        that kernel allows it, slower otherwise. The next kernel may start early in both cases.

    Values are those of `lowp.formats.dequantize`, rounded to the output's dtype, bit for bit but for the form of NaN.
    Table, lengths and scales are read on the device only: a call allocates nothing, does not synchronise, and can be
    captured in a CUDA graph. The first call of a configuration (formats, scales, heads, head_dim) loads its kernel and
    may have to compile it: make that call before the capture.
    Raises TypeError (dtype), ValueError (shape, stride, device) or NotImplementedError (a combination not built).
    """
    call = Call(k_cache, v_cache, block_table, starts, ends, cu_out, k_out, v_out, k_scale, v_scale, layout, overlap)
    checks.check_arguments(call)
    if k_out.device.type == "cpu":
        checks.check_entries(call)
        reference.read(call)
    elif call.rows and call.sequences:
        launch.run(call)
