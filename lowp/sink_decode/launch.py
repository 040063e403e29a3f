"""From a checked call and the device to a build of the kernel, its grid and its parameters."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

from lowp.jit import launcher
from lowp.jit.device import device_of
from lowp.sink_decode import build
from lowp.sink_decode.call import Call
from lowp.sink_decode.heuristic import NEAR_TOKENS, choose
from lowp.sink_decode.params import Params, params_of
from lowp.sink_decode.resources import Launch, Variant, partials_bytes, planned_splits


class Prepared(NamedTuple):
    """A call that is ready for the driver: what `launcher.launch` takes. workspace: kept alive with it."""

    kernel: launcher.Kernel
    grid: tuple[int, int, int]
    params: Params
    cluster: int
    overlap: bool
    workspace: torch.Tensor | None


def variant_of(call: Call) -> Variant:
    """Return the variant of the kernel that the call needs."""
    q, k_cache = call.q, call.k_cache
    return Variant(
        head_dim=call.head_dim,
        group=call.group,
        query_bf16=q.dtype == torch.bfloat16,
        kv_dtype=k_cache.dtype,
        token_scales=call.v_granularity == "token_head",
        window=call.window_left >= 0,
        channel_scales=call.k_granularity == "channel",
        query_tokens=call.query_tokens,
        # Both have the same strides: where V begins 64 bytes after K, every token's values do.
        interleaved=call.head_dim * k_cache.element_size() == 64 == call.v_cache.data_ptr() - k_cache.data_ptr(),
    )


def bound_of(call: Call) -> int:
    """Return the most tokens that the call may read of a sequence, as far as the host knows."""
    bounds = [call.table_width * call.page_size]
    bounds += [call.longest] if call.longest is not None else []
    bounds += [call.window_left + call.query_tokens] if call.window_left >= 0 else []
    return min(bounds)


def choice(call: Call, batch: int) -> Launch:
    """Choose the launch of a call, with another batch size; its device is the current one."""
    bound = bound_of(call)
    near = call.longest is not None or bound <= NEAR_TOKENS
    return choose(variant_of(call), batch, call.kv_heads, bound, device_of(call.q.device), near)


def run(call: Call, fixed: Launch | None = None) -> None:
    """Launch the kernel for a checked call; fixed: in that launch instead of the one that `choose` gives, for tests.

    Raises TypeError or ValueError for a workspace that does not fit, where the launch needs one.
    """
    with torch.cuda.device(call.q.device):
        prepared = prepare(call, fixed)
        launcher.launch(prepared.kernel, prepared.grid, prepared.params, prepared.cluster, prepared.overlap)


def prepare(call: Call, fixed: Launch | None = None) -> Prepared:
    """Load the kernel and set its grid and parameters; the call's device is the current one. As `run` else."""
    device, variant, batch, kv_heads = device_of(call.q.device), variant_of(call), call.batch, call.kv_heads
    launch = fixed or choice(call, batch)
    params, workspace = params_of(call), None
    grid = (kv_heads, launch.cluster, batch)
    if launch.cluster == 0:
        splits = planned_splits(launch, kv_heads, device)
        grid = (kv_heads, max(splits, batch), 1)
        counter_bytes = batch * kv_heads * 4
        needed = kv_heads * splits * partials_bytes(variant.group_tiles, variant.head_dim) + counter_bytes
        workspace = checked_workspace(call.workspace, needed, call.q.device)
        params.splits = splits
        params.partials = workspace.data_ptr()
        params.arrived = workspace.data_ptr() + workspace.numel() - counter_bytes
    overlap = launch.overlap if call.overlap is None else call.overlap
    kernel = build.kernel(device.arch, variant, launch, call.q.device.index)
    return Prepared(kernel, grid, params, launch.cluster, overlap and device.clusters, workspace)


def load(call: Call, batches: Iterable[int]) -> int:
    """Compile and load the kernels of calls like this one with other batch sizes; return how many."""
    device, variant = device_of(call.q.device), variant_of(call)
    launches = {choice(call, batch) for batch in batches}
    with torch.cuda.device(call.q.device):
        return build.load_all(device.arch, variant, launches, call.q.device.index)


def checked_workspace(workspace: torch.Tensor | None, needed: int, device: torch.device) -> torch.Tensor:
    """Return a workspace of `needed` bytes at least: the one that is given, or a new one."""
    needed = math.ceil(needed / 16) * 16
    if workspace is None:
        return torch.zeros(needed, dtype=torch.uint8, device=device)
    if workspace.dtype != torch.uint8:
        raise TypeError(f"workspace is {workspace.dtype}; expected one from make_workspace, torch.uint8")
    aligned = workspace.data_ptr() % 16 == 0 and workspace.numel() % 4 == 0
    if workspace.device != device or not workspace.is_contiguous() or not aligned:
        raise ValueError(
            f"workspace has {workspace.numel()} bytes on {workspace.device}, strides {workspace.stride()}; expected a "
            f"whole one from make_workspace on {device}"
        )
    if workspace.numel() < needed:
        raise ValueError(
            f"workspace has {workspace.numel()} bytes; this call needs {needed}: make_workspace(batch=...)"
        )
    return workspace
