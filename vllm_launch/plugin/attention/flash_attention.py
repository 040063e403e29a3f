"""FlashAttention over packed BF16 sequences, as vLLM brings it: version 3 on SM90, version 2 on other GPUs.

Version 2 has no sinks: its output is scaled by the share of the softmax that they leave, which its LSE gives. vLLM's
wheels hold it as machine code for 8.x and as PTX of 8.0, which the driver compiles once on other GPUs.
"""

from collections.abc import Callable

import torch

Attention = Callable[..., torch.Tensor | None]  # `fa2` or `fa3`; the record has its name


def choose(device: torch.device) -> Attention:
    """Return the attention of a GPU."""
    return fa3 if version(torch.cuda.get_device_capability(device)[0]) == 3 else fa2


def version(major: int) -> int:
    """Return the version of FlashAttention for a compute capability's major number."""
    return 3 if major == 9 else 2


def unsupported_reason(major: int) -> str | None:
    """Return why FlashAttention cannot run on this GPU with the installed vLLM; None if it can."""
    from vllm.vllm_flash_attn import fa_version_unsupported_reason

    return fa_version_unsupported_reason(version(major))


def fa3(q, k, v, out, *, sinks, with_lse, **sequences):
    """Write attention of packed sequences to `out`; return its LSE [heads, tokens] if `with_lse`.

    q, k, v, out: [tokens, heads, head_dim] bf16. sinks: [heads] bf16, or None. sequences: see `_run`.
    """
    result = _run(q, k, v, out, 3, with_lse, **sequences, s_aux=sinks)
    return result[1] if with_lse else None


def fa2(q, k, v, out, *, sinks, with_lse, longest_query, **sequences):
    """As `fa3`; the sinks are applied in a second pass, and `with_lse` is for calls without them."""
    longest_query = max(longest_query, 2)  # 1 selects kernels that split the keys, which the warm-up does not load
    _, lse = _run(q, k, v, out, 2, True, longest_query=longest_query, **sequences)
    if sinks is not None:  # exp(lse) / (exp(lse) + exp(sink))
        out.mul_(torch.sigmoid(lse.t() - sinks)[..., None])
    return lse if with_lse else None


def _run(
    q,
    k,
    v,
    out,
    fa_version,
    with_lse,
    *,
    cu_queries,
    cu_keys,
    longest_query,
    longest_key,
    sm_scale,
    causal,
    window_left,
    **options,
):
    """Call vLLM's FlashAttention. causal: the last query token is aligned with the last key. window_left: -1 for none.

    cu_queries, cu_keys: [sequences + 1] int32, the first token of each.
    """
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        q,
        k,
        v,
        out=out,
        cu_seqlens_q=cu_queries,
        cu_seqlens_k=cu_keys,
        max_seqlen_q=longest_query,
        max_seqlen_k=longest_key,
        softmax_scale=sm_scale,
        causal=causal,
        window_size=[window_left, 0] if window_left >= 0 else [-1, -1],
        return_softmax_lse=with_lse,
        fa_version=fa_version,
        **options,
    )


def warm_up(attention: Attention, query_heads: int, scratch: torch.Tensor, window_left: int) -> None:
    """Load the kernels that calls with this window take: the driver may have to compile them, for half a minute.

    scratch: [K and V, rows, kv_heads, head_dim] of finite values.
    """
    keys, values = scratch[:, : window_left + 2]  # over fewer keys than the window, it would be dropped
    query = keys.new_zeros(1, query_heads, keys.shape[-1])
    lengths = torch.tensor([[0, 1], [0, len(keys)]], dtype=torch.int32, device=keys.device)
    sinks = keys.new_zeros(query_heads)
    # Parts of a context, which are not causal, have no window.
    for causal, with_lse in ((True, False), (True, True), *(((False, True),) if window_left < 0 else ())):
        attention(
            query,
            keys,
            values,
            torch.empty_like(query),
            cu_queries=lengths[0],
            cu_keys=lengths[1],
            longest_query=1,
            longest_key=len(keys),
            sm_scale=1.0,
            causal=causal,
            window_left=window_left,
            sinks=None if with_lse else sinks,
            with_lse=with_lse,
        )
