"""The launch: a device's and a call's properties to a build of the kernel, its grid and its parameters."""

import ctypes
import functools
import math

import torch

from lowp.sink_decode import build
from lowp.sink_decode.build import Config
from lowp.sink_decode.heuristic import Device, Problem, choose, partial_bytes, shares_of
from lowp.sink_decode.params import granularity, page_and_head_axis, params_of, query_tokens_of


@functools.cache
def device_of(device: torch.device) -> Device:
    """What the launch depends on. Raises NotImplementedError below sm_80."""
    found = torch.cuda.get_device_properties(device)
    capability = found.major * 10 + found.minor
    if capability < 80:
        raise NotImplementedError(f"the device is sm_{capability}; this kernel needs sm_80 or later")
    return Device(
        arch=f"sm_{capability}{'a' if capability >= 90 else ''}",
        clusters=capability >= 90,
        sms=found.multi_processor_count,
        shared_per_cta=found.shared_memory_per_block_optin,
        shared_per_sm=found.shared_memory_per_multiprocessor,
    )


def problem_of(q, k_cache, v_cache, k_scale, v_scale, layout: str, window_left: int) -> Problem:
    """What a call needs built."""
    return Problem(
        head_dim=q.shape[-1],
        group=q.shape[-2] // k_cache.shape[page_and_head_axis(layout)[1]],
        query_bf16=q.dtype == torch.bfloat16,
        kv_dtype=k_cache.dtype,
        token_scales=granularity(v_scale) == "token_head",
        window=window_left >= 0,
        channel_scales=granularity(k_scale) == "channel",
        query_tokens=query_tokens_of(q),
        # Both have the same strides: where the values begin 64 bytes after the keys, every token's do.
        interleaved=q.shape[-1] * k_cache.element_size() == 64 == v_cache.data_ptr() - k_cache.data_ptr(),
    )


def run(
    q,
    k_cache,
    v_cache,
    block_table,
    seq_lens,
    sinks,
    *,
    sm_scale,
    window_left,
    k_scale,
    v_scale,
    layout,
    out,
    lse,
    workspace,
    fixed=None,
):
    """Launch for arguments that `api` has checked. fixed: a Launch instead of the one that `choose` gives, for tests.

    Raises TypeError or ValueError for a workspace that does not fit, where the launch needs one.
    """
    page_axis, head_axis = page_and_head_axis(layout)
    batch, head_dim = q.shape[0], q.shape[-1]
    page_size, kv_heads = k_cache.shape[page_axis], k_cache.shape[head_axis]
    device = device_of(q.device)
    problem = problem_of(q, k_cache, v_cache, k_scale, v_scale, layout, window_left)
    width = block_table.shape[1]
    longest = width * page_size if window_left < 0 else min(width * page_size, window_left + problem.query_tokens)
    launch = fixed or choose(problem, batch, kv_heads, longest, device)
    params = params_of(
        q, k_cache, v_cache, block_table, seq_lens, sinks, sm_scale, window_left, k_scale, v_scale, layout, out, lse
    )
    grid = (kv_heads, launch.cluster, batch)
    if launch.cluster == 0:
        shares = shares_of(launch, kv_heads, device)
        grid = (kv_heads, shares + batch, 1)
        needed = kv_heads * shares * partial_bytes(problem.group_tiles, head_dim) + batch * kv_heads * 4
        workspace = _checked_workspace(workspace, needed, q)
        params.splits = shares
        params.partials = workspace.data_ptr()
        params.arrived = workspace.data_ptr() + workspace.numel() - batch * kv_heads * 4
    with torch.cuda.device(q.device):
        config = Config(device.arch, problem, launch)
        kernel = build.function(config, q.device.index)
        addresses = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        stream = torch.cuda.current_stream().cuda_stream
        build.launch(kernel, grid, config, ctypes.addressof(addresses), stream, launch.overlap and device.clusters)


def _checked_workspace(workspace, needed, q):
    needed = math.ceil(needed / 16) * 16
    if workspace is None:
        return torch.zeros(needed, dtype=torch.uint8, device=q.device)
    if workspace.dtype != torch.uint8:
        raise TypeError(f"workspace is {workspace.dtype}; expected one from make_workspace, torch.uint8")
    aligned = workspace.data_ptr() % 16 == 0 and workspace.numel() % 4 == 0
    if workspace.device != q.device or not workspace.is_contiguous() or not aligned:
        raise ValueError(
            f"workspace has {workspace.numel()} bytes on {workspace.device}, strides {workspace.stride()}; expected a "
            f"whole one from make_workspace on {q.device}"
        )
    if workspace.numel() < needed:
        raise ValueError(
            f"workspace has {workspace.numel()} bytes; this call needs {needed}: make_workspace(batch=...)"
        )
    return workspace
