"""Plan the wrappers of the FlashInfer on PYTHONPATH for a case."""

import torch
from flashinfer import BatchDecodeWithPagedKVCacheWrapper, BatchPrefillWithPagedKVCacheWrapper
from flashinfer.attention import BatchAttentionWithAttentionSinkWrapper

from kernels_tests.flashinfer_patches.cases import HEAD_DIM, KV_HEADS, QO_HEADS, Cache


def _geometry(cache: Cache) -> tuple:
    """Return the arguments that describe a cache to a plan."""
    pages = cache.indptr, cache.indices, cache.last_page_len
    return *pages, QO_HEADS, KV_HEADS, cache.head_dim, cache.page_size


def plan_decode(workspace, cache: Cache, *, q_type=torch.bfloat16, use_sinks=True, wrapper=None, **options):
    """Plan a decode wrapper for a cache; options go to plan()."""
    wrapper = wrapper or BatchDecodeWithPagedKVCacheWrapper(workspace, cache.layout, use_tensor_cores=True)
    wrapper.plan(
        *_geometry(cache),
        q_data_type=q_type,
        kv_data_type=cache.k.dtype,
        **({"use_sinks": True} if use_sinks else {}),
        **options,
    )
    return wrapper


def plan_prefill(workspace, cache: Cache, per_request: list[int], *, wrapper=None, use_sinks=True, **options):
    """Plan a causal prefill wrapper for a cache. per_request: queries of each request. Options go to plan()."""
    wrapper = wrapper or BatchPrefillWithPagedKVCacheWrapper(workspace, cache.layout)
    wrapper.plan(
        torch.tensor([0, *per_request], device=cache.k.device).cumsum(0).int(),
        *_geometry(cache),
        causal=True,
        kv_data_type=cache.k.dtype,
        **({"q_data_type": torch.bfloat16} | options),
        **({"use_sinks": True} if use_sinks else {}),
    )
    return wrapper


def sink_wrapper(workspace, layout: str, kv_type: torch.dtype) -> BatchAttentionWithAttentionSinkWrapper:
    """Return upstream's sink wrapper, which takes the sinks positionally, on fa2."""
    return BatchAttentionWithAttentionSinkWrapper(
        workspace, layout, backend="fa2", kv_data_type=kv_type, head_dim_qk=HEAD_DIM, head_dim_vo=HEAD_DIM
    )
