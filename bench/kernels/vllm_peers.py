"""vLLM's decode kernels, called as its attention backends call them. Imports vLLM only to prepare a kernel.

Arguments as in vLLM 0.26's v1/attention/backends/flash_attn.py and triton_attn.py.
"""

from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from bench.kernels.grid import GEOMETRY
from bench.kernels.timing import Call

if TYPE_CHECKING:
    import torch

    from lowp.paged.inputs import Inputs
    from lowp.paged.shapes import Shape

# FA3 chooses its KV splits in every call, or takes those that vLLM plans once for all layers of a captured step.
FA3_SETTINGS = (SPLITS_BY_FA3, SPLITS_BY_VLLM) = ("splits by FA3", "splits planned by vLLM")
MAX_SPLITS = 32  # vLLM's flash_attn_max_num_splits_for_cuda_graph
SEGMENTS = 16  # KV splits of a sequence in Triton: vLLM's NUM_PAR_SOFTMAX_SEGMENTS
MIN_GRID = 128  # vLLM's MIN_LAUNCH_GRID_SIZE_2D: larger products of sequences and KV heads are not split


def missing_reason() -> str | None:
    """Why vLLM's kernels cannot be measured here, without importing it."""
    return None if find_spec("vllm") else "vLLM is not installed"


def unusable_reason(name: str) -> str | None:
    """Why a kernel of vLLM's cannot be measured here; imports it. name: vllm-fa3 or vllm-triton."""
    if reason := missing_reason():
        return reason
    try:
        if name == "vllm-triton":
            from vllm.v1.attention.ops.triton_unified_attention import unified_attention  # noqa: F401

            return None
        from vllm.vllm_flash_attn import fa_version_unsupported_reason

        return fa_version_unsupported_reason(3)
    except Exception as error:  # a vLLM of another release or for another device fails in many ways
        return f"vLLM's kernel cannot be imported: {type(error).__name__}: {error}"


def fa3(inputs: "Inputs", kv_format: str, setting: str, sinks: bool) -> list[Call]:
    """FlashAttention 3 of vLLM; with an FP8 cache its query is FP8 too, quantised here, before the timed calls."""
    import torch
    from vllm.vllm_flash_attn import flash_attn_varlen_func, get_scheduler_metadata

    shape, device = inputs.shape, inputs.seq_lens.device
    cache_dtype = inputs.caches[kv_format][0][0].dtype
    fp8 = cache_dtype == torch.float8_e4m3fn
    scale = torch.ones(1, device=device).expand(shape.batch, GEOMETRY.kv_heads) if fp8 else None
    options = {
        "max_seqlen_q": shape.query_tokens,
        "cu_seqlens_q": _query_starts(inputs),
        "max_seqlen_k": shape.context,
        "seqused_k": inputs.seq_lens,
        "softmax_scale": inputs.sm_scale,
        "causal": True,
        "window_size": list(_window(inputs)),
        "block_table": inputs.block_table,
        "q_descale": scale,
        "k_descale": scale,
        "v_descale": scale,
        "fa_version": 3,
        "s_aux": inputs.sinks.bfloat16() if sinks else None,
    }
    if setting == SPLITS_BY_VLLM:
        options["num_splits"] = MAX_SPLITS
        options["scheduler_metadata"] = get_scheduler_metadata(
            batch_size=shape.batch,
            max_seqlen_q=shape.query_tokens,
            max_seqlen_k=shape.context,
            num_heads_q=GEOMETRY.query_heads,
            num_heads_kv=GEOMETRY.kv_heads,
            headdim=shape.head_dim,
            cache_seqlens=inputs.seq_lens,
            qkv_dtype=cache_dtype,
            cu_seqlens_q=options["cu_seqlens_q"],
            page_size=GEOMETRY.page_size,
            causal=True,
            window_size=_window(inputs),
            num_splits=MAX_SPLITS,
        )
    return [
        partial(flash_attn_varlen_func, q.to(cache_dtype), *_nhd(kv, shape), out=out, **options)
        for q, kv, out in zip(_flat(inputs.q), inputs.caches[kv_format], _flat(inputs.out), strict=True)
    ]


def triton(inputs: "Inputs", kv_format: str, setting: str, sinks: bool) -> list[Call]:
    """vLLM's Triton unified attention with a BF16 query; few sequences are split into segments, as vLLM decides."""
    import torch
    from vllm.v1.attention.ops.triton_unified_attention import unified_attention
    from vllm.v1.kv_cache_interface import KVQuantMode

    shape, device = inputs.shape, inputs.seq_lens.device
    fp8 = inputs.caches[kv_format][0][0].dtype == torch.float8_e4m3fn
    scale = torch.ones(1, device=device).expand(shape.batch, GEOMETRY.kv_heads)
    max_split_batch = MIN_GRID // GEOMETRY.kv_heads
    segments = (max_split_batch, GEOMETRY.query_heads, SEGMENTS)
    options = {
        "cu_seqlens_q": _query_starts(inputs),
        "max_seqlen_q": shape.query_tokens,
        "seqused_k": inputs.seq_lens,
        "max_seqlen_k": shape.context,
        "softmax_scale": inputs.sm_scale,
        "causal": True,
        "window_size": _window(inputs),
        "block_table": inputs.block_table,
        "softcap": 0.0,
        "q_descale": None,
        "k_descale": scale,
        "v_descale": scale,
        "seq_threshold_3D": max_split_batch,
        "num_par_softmax_segments": SEGMENTS,
        "softmax_segm_output": torch.empty(*segments, shape.head_dim, device=device),
        "softmax_segm_max": torch.empty(segments, device=device),
        "softmax_segm_expsum": torch.empty(segments, device=device),
        "sinks": inputs.sinks.bfloat16() if sinks else None,
        "kv_quant_mode": KVQuantMode.FP8_PER_TENSOR if fp8 else KVQuantMode.NONE,
    }
    return [
        partial(unified_attention, q, *_nhd(kv, shape), out, **options)
        for q, kv, out in zip(_flat(inputs.q), inputs.caches[kv_format], _flat(inputs.out), strict=True)
    ]


def _query_starts(inputs: "Inputs") -> "torch.Tensor":
    import torch

    starts = torch.arange(inputs.shape.batch + 1, dtype=torch.int32, device=inputs.seq_lens.device)
    return starts * inputs.shape.query_tokens


def _flat(queries: list["torch.Tensor"]) -> list["torch.Tensor"]:
    """Queries or outputs in vLLM's shape, [tokens of all sequences, query heads, head_dim], as views."""
    return [values.view(-1, *values.shape[-2:]) for values in queries]


def _window(inputs: "Inputs") -> tuple[int, int]:
    """A layer's window as vLLM has it: tokens before the newest, and after it."""
    return (-1, -1) if inputs.shape.window_left < 0 else (inputs.shape.window_left, 0)


def _nhd(cache: tuple["torch.Tensor", "torch.Tensor"], shape: "Shape") -> list["torch.Tensor"]:
    """Keys and values with vLLM's order of axes, [pages, page, kv heads, head_dim].

    Views of an interleaved cache, which is vLLM's own; from another layout copied into that order.
    """
    views = [values.transpose(1, 2) for values in cache]
    return views if shape.layout == "interleaved" else [view.contiguous() for view in views]
