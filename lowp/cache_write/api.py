"""Write into the paged cache: the public functions, and the dispatch to a CPU or a GPU."""

from lowp.cache_write import checks, launch, reference
from lowp.cache_write.call import Call, Rotation


def cache_write(
    k,
    v,
    k_cache,
    v_cache,
    slot_mapping,
    *,
    k_scale=None,
    v_scale=None,
    layout,
    saturated=None,
    overlap=False,
):
    """Write K and V of new tokens into a paged cache, in its storage format. `reference` has the formula.

    k, v: [tokens, kv_heads, head_dim], bf16 or fp16; tokens may be strided, as in views of the QKV projection's output.
        head_dim a multiple of 16. Rows past the slots are ignored.
    k_cache, v_cache: [pages, page_size, kv_heads, head_dim] (layout NHD) or [pages, kv_heads, page_size, head_dim]
        (HND), bf16, fp16, float8_e4m3fn or int8; equal strides, the last one 1: views of one tensor that holds both are
        taken without a copy. page_size a power of two.
    slot_mapping: [slots] int64, contiguous: token i goes to slot `slot % page_size` of page `slot // page_size`, and
        nowhere if it is -1. Of equal slots any may win, in parts. A slot past the cache is skipped on GPU, raises
        ValueError on CPU.
    k_scale, v_scale: positive fp32 tensors, value / scale = stored: None, one element, or [kv_heads]. int8 needs both,
        and its k_scale may be [kv_heads, head_dim], one per channel. 16 bits have none.
        Or, in int8, both in the cache's shape without head_dim, of any strides, equal for both, in the pages' own
        memory too: written by the call. At each token's slot goes the scale of its row, its largest finite magnitude
        / 127, after rotation; other scales stay as they are. Always positive and finite: 1 for a row without a finite
        value other than 0, else at least 2^-126. head_dim must be a power of two then, up to 512.
    saturated: [2] int64, contiguous: if given, the values of K and of V whose magnitude is over the format's largest
        are added to it, infinities too. With scales written by the call these are the infinities alone.
    overlap: on GPU, let the kernel start before the previous one on the stream has ended (dependent launch): faster if
        that kernel allows it, slower otherwise (NOTES.md). The next kernel may start early in both cases.

    Values are rounded to nearest, ties to even, and clamped to the format's finite range: as by
    `lowp.formats.quantize`, bit for bit but for the sign of NaN; in int8 NaN is 0.
    Slots and scales are read on the device only: a call allocates nothing, does not synchronise, and can be captured in
    a CUDA graph. The first call of a configuration (formats, scales, heads, head_dim) loads its kernel and may have to
    compile it: make that call before the capture.
    Raises TypeError (dtype), ValueError (shape, stride, device) or NotImplementedError (a combination not built).
    """
    _run(Call(k, v, k_cache, v_cache, slot_mapping, k_scale, v_scale, layout, saturated, overlap))


def rope_cache_write(
    q,
    k,
    v,
    k_cache,
    v_cache,
    slot_mapping,
    positions,
    cos_sin,
    *,
    k_scale=None,
    v_scale=None,
    layout,
    q_out=None,
    saturated=None,
    overlap=False,
):
    """Rotate Q and K by their positions (RoPE, half-split), write K and V into the cache as `cache_write`, return Q.

    q: [tokens, query_heads, head_dim], k's dtype; tokens may be strided. Rotated in place, or into q_out: q's shape and
        dtype, tokens may be strided. The first rows are rotated, as many as there are slots, -1 or not. k stays as it
        is: its rotated values are rounded once, to the storage format.
    positions: [tokens] int64, contiguous; clamped to the table on GPU, raises ValueError on CPU.
    cos_sin: [positions, head_dim], fp32 or q's dtype, rows contiguous: cosines of the head_dim / 2 angles, then sines;
        vLLM's cos_sin_cache. YaRN and other scalings are in its values.
    """
    q_out = q if q_out is None else q_out
    rotation = Rotation(q, q_out, positions, cos_sin)
    _run(Call(k, v, k_cache, v_cache, slot_mapping, k_scale, v_scale, layout, saturated, overlap, rotation))
    return q_out


def _run(call: Call) -> None:
    checks.check_arguments(call)
    if call.k.device.type == "cpu":
        checks.check_entries(call)
        reference.write(call)
    elif call.tokens:
        launch.run(call)
