"""The launch configuration, from the problem, the batch size, the table's width and the device alone; the launch."""

import ctypes
import functools
import math
from dataclasses import dataclass, replace

import torch

from lowp.sink_decode import build
from lowp.sink_decode.build import Config
from lowp.sink_decode.params import granularity, page_and_head_axis, params_of, query_tokens_of

STEP_BYTES = 4096  # keys and values that a warp takes at a time, where a tile is not more
PART_BYTES = 2**20  # keys and values of a row that one CTA takes, where the rows alone fill the device
LONG_BYTES = 2**21  # rows over this are cut by plan: a batch of one such and many short must not take its length each


@dataclass(frozen=True)
class Device:
    """What a launch depends on. arch: as NVRTC names it; clusters: whether it has them; shared memory in bytes."""

    arch: str
    clusters: bool
    sms: int
    shared_per_cta: int
    shared_per_sm: int


@dataclass(frozen=True)
class Problem:
    """What the kernel is built for, beside the launch: see config.cuh.

    token_scales: V's scales, and K's too unless channel_scales, are per token and head.
    """

    head_dim: int
    group: int
    query_bf16: bool
    kv_dtype: torch.dtype
    token_scales: bool
    window: bool
    channel_scales: bool = False
    query_tokens: int = 1

    @property
    def group_tiles(self) -> int:
        return math.ceil(self.group * self.query_tokens / 8)

    @property
    def tile_bytes(self) -> int:
        return 2 * 16 * self.head_dim * self.kv_dtype.itemsize


@dataclass(frozen=True)
class Launch:
    """A launch: warps a CTA, ring slots a warp, tiles of 16 tokens a step, CTAs an SM at least, CTAs that share a row.

    cluster 0: shares are planned on the device; 1: one CTA a row and KV head. overlap: the kernel may be launched
    before the previous one on its stream has ended (it waits for it itself).
    """

    warps: int
    stages: int
    tiles: int
    min_ctas: int
    cluster: int
    overlap: bool = True


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


@functools.lru_cache(maxsize=4096)
def choose(problem: Problem, batch: int, kv_heads: int, longest: int, device: Device) -> Launch:
    """The launch for a batch whose sequences have up to `longest` tokens. Figures behind the rules: NOTES.md.

    Few rows: a cluster a row and KV head; of one sequence, or of rows that give a cluster two CTAs only, CTAs that fill
    an SM each.
    Many rows: CTAs as small as it takes to have all on the device at once; a row of over PART_BYTES is cut.
    Bounds over LONG_BYTES, where lengths may differ most: planned shares; not of one sequence with 8 KV heads or more,
    whose clusters are enough for the device.
    """
    rows, tiles = batch * kv_heads, max(1, STEP_BYTES // problem.tile_bytes)
    row_bytes = longest * problem.tile_bytes // 16
    alone = batch == 1 and (rows >= 8 or row_bytes <= LONG_BYTES)
    if not device.clusters or (row_bytes > LONG_BYTES and not alone):
        cluster = 0
    elif 2 * rows <= device.sms:
        return fit(problem, _few_rows(problem, rows, row_bytes, tiles, device), device)
    else:
        cluster = min(8, math.ceil(row_bytes / PART_BYTES))
    ctas = rows * max(1, cluster)
    if ctas <= 2 * device.sms:
        return fit(problem, Launch(8, 3, tiles, 2, cluster), device)
    short = cluster == 1 or (cluster == 0 and row_bytes <= PART_BYTES)
    two_warps = short and (4 * device.sms < ctas <= 8 * device.sms or ctas > 12 * device.sms)
    return fit(problem, Launch(*((2, 2, tiles, 8) if two_warps else (4, 3, tiles, 4)), cluster), device)


def _few_rows(problem, rows, row_bytes, tiles, device):
    if 3 * device.sms / 4 < 8 * rows <= 2 * device.sms:
        return Launch(4, 3, tiles, 4, 8)  # small CTAs: where one of the rows is long, the others soon leave it the SMs
    # Not all clusters of over 2 CTAs fit a whole device at once, since GPCs differ: a quarter is left.
    cluster = max(2, min(8, 3 * device.sms // (4 * rows)))
    steps = row_bytes / (STEP_BYTES * 8 * cluster)  # of a warp
    if steps <= 2:
        return Launch(8, 3, tiles, 2, cluster)
    overlap = steps <= 32  # the next kernel's clusters, placed beside this one's, would crowd some GPCs for long
    deep = Launch(8, 3, 2 * tiles, 1, cluster, overlap) if steps > 4 else Launch(8, 6, tiles, 1, cluster, overlap)
    fits = shared_bytes(problem, deep) <= device.shared_per_cta
    return deep if fits else Launch(8, 3, tiles, 1, cluster, overlap)


def fit(problem: Problem, launch: Launch, device: Device) -> Launch:
    """The launch with as few ring slots and CTAs an SM as registers and shared memory make it.

    Raises NotImplementedError where not even the least fits.
    """
    # Registers: 16 warps an SM have 128 each, enough for 64 dims of 8 heads, and for 128 dims of e4m3; twice as much
    # state needs 168, then 255.
    state = problem.head_dim // 64 * problem.group_tiles
    one_tile_of_e4m3 = problem.group_tiles == 1 and problem.kv_dtype == torch.float8_e4m3fn
    warps_per_sm = 16 if one_tile_of_e4m3 else {1: 16, 2: 12}.get(state, 8)
    if state > 2 and problem.query_tokens > 1:  # many columns: steps of one tile, as many bytes under way
        launch = replace(launch, tiles=1, stages=launch.stages * launch.tiles)
    least = max(2, math.ceil(_exchange_bytes(problem) / slot_bytes(problem, launch)))
    for stages in range(max(launch.stages, least), least - 1, -1):
        one = replace(launch, stages=stages, min_ctas=1)
        needed = shared_bytes(problem, one)
        if needed <= device.shared_per_cta:
            ctas = min(launch.min_ctas, warps_per_sm // launch.warps, device.shared_per_sm // (needed + 1024))
            return replace(one, min_ctas=max(1, ctas))
    if launch.warps > 2:
        return fit(problem, replace(launch, warps=launch.warps // 2, stages=3), device)
    raise NotImplementedError(f"{problem} does not fit {device.shared_per_cta} bytes of shared memory")


def _exchange_bytes(problem):
    return 8 * problem.group_tiles * (problem.head_dim + 4) * 4


def slot_bytes(problem: Problem, launch: Launch) -> int:
    """One slot of a warp's ring (load.cuh)."""
    return launch.tiles * (problem.tile_bytes + (128 if problem.token_scales else 0))


def shared_bytes(problem: Problem, launch: Launch) -> int:
    """Shared memory of a CTA (merge.cuh)."""
    heads = 8 * problem.group_tiles
    used = launch.warps * launch.stages * slot_bytes(problem, launch) + heads * launch.warps * 8 + heads * 4
    tile_halves = problem.group_tiles * problem.head_dim // 64
    used += 1024 * tile_halves if tile_halves > 5 else 0  # the query (config.cuh)
    if launch.cluster > 1:
        slice_floats = math.ceil(heads * problem.head_dim / 4 / launch.cluster) * 4
        return used + launch.cluster * (slice_floats * 4 + heads * 8) + 8
    return used if launch.cluster == 1 else used + 4


def problem_of(q, k_cache, k_scale, v_scale, layout: str, window_left: int) -> Problem:
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
    )


def config_of(problem: Problem, launch: Launch, arch: str) -> Config:
    """The build of a problem and a launch."""
    return Config(
        arch=arch,
        head_dim=problem.head_dim,
        query_bf16=problem.query_bf16,
        kv_e4m3=problem.kv_dtype == torch.float8_e4m3fn,
        kv_int8=problem.kv_dtype == torch.int8,
        kv_bf16=problem.kv_dtype == torch.bfloat16,
        query_tokens=problem.query_tokens,
        group_tiles=problem.group_tiles,
        token_scales=problem.token_scales,
        channel_scales=problem.channel_scales,
        window=problem.window,
        warps=launch.warps,
        stages=launch.stages,
        tiles=launch.tiles,
        cluster=launch.cluster,
        min_ctas=launch.min_ctas,
        shared_bytes=shared_bytes(problem, launch),
    )


# ---- planned shares: scratch memory
def shares_of(launch: Launch, kv_heads: int, device: Device) -> int:
    """CTAs for the parts of long rows, a KV head: as many as the device holds at once."""
    return max(1, device.sms * launch.min_ctas // kv_heads)


def _partial_bytes(group_tiles, head_dim):
    return 8 * group_tiles * (head_dim + 2) * 4


def workspace_bytes(batch: int, query_heads: int, kv_heads: int, head_dim: int, device: Device) -> int:
    """Scratch memory for any call of up to `batch` sequences: partials from its start, counters at its end."""
    group_tiles = math.ceil(query_heads / kv_heads / 8)
    most = kv_heads * max(1, device.sms * 8 // kv_heads)
    return most * _partial_bytes(group_tiles, head_dim) + batch * kv_heads * 4


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
    problem = problem_of(q, k_cache, k_scale, v_scale, layout, window_left)
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
        needed = kv_heads * shares * _partial_bytes(problem.group_tiles, head_dim) + batch * kv_heads * 4
        workspace = _checked_workspace(workspace, needed, q)
        params.shares = shares
        params.partials = workspace.data_ptr()
        params.arrived = workspace.data_ptr() + workspace.numel() - batch * kv_heads * 4
    with torch.cuda.device(q.device):
        config = config_of(problem, launch, device.arch)
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
