"""Variants of the kernel, launches, and what they need of a GPU: registers, shared memory, scratch memory."""

import functools
import math
from dataclasses import dataclass, replace

import torch

from lowp.jit.device import Device

PLANNED_CTAS = 16  # maximum CTAs an SM with planned splits


@dataclass(frozen=True)
class Variant:
    """A variant of the kernel: what it computes; config.cuh has the macros.

    token_scales: V's scales, and K's too unless channel_scales, are per token and head. interleaved: K and V of a
    token are the two halves of one line of 128 bytes.
    """

    head_dim: int
    group: int
    query_bf16: bool
    kv_dtype: torch.dtype
    token_scales: bool
    window: bool
    channel_scales: bool = False
    query_tokens: int = 1
    interleaved: bool = False

    @property
    def group_tiles(self) -> int:
        return math.ceil(self.group * self.query_tokens / 8)

    @property
    def query_terms(self) -> int:
        """An fp16 query over a bf16 cache is the sum of two bf16."""
        return 1 if self.query_bf16 or self.kv_dtype != torch.bfloat16 else 2

    @property
    def tile_bytes(self) -> int:
        return 2 * 16 * self.head_dim * self.kv_dtype.itemsize


@dataclass(frozen=True)
class Launch:
    """Warps of a CTA, stages of a warp's ring, tiles of 16 tokens a stage, CTAs an SM at least, CTAs of a cluster.

    cluster: a row is split over one. 1: one CTA a row; 0: KV splits are planned on the device. overlap: the kernel may
    be launched before the previous one on its stream has ended (it waits for that itself). least_steps: of a planned
    split.
    """

    warps: int
    stages: int
    tiles: int
    min_ctas: int
    cluster: int
    overlap: bool = True
    least_steps: int = 4


@functools.cache
def fit(variant: Variant, launch: Launch, device: Device) -> Launch:
    """Reduce a launch to what registers and shared memory allow: its warps, tiles, stages and CTAs an SM.

    Raises NotImplementedError where not even the smallest fits.
    """
    # Registers: 16 warps an SM have 128 each, enough for 64 dims of 8 heads, and for 128 dims of e4m3; twice as much
    # state needs 168, then 255. The simplest variants do with 96, which 20 warps have.
    state = variant.head_dim // 64 * variant.group_tiles
    single_tile_of_e4m3 = variant.group_tiles == 1 and variant.kv_dtype == torch.float8_e4m3fn
    warps_per_sm = 16 if single_tile_of_e4m3 else {1: 16, 2: 12}.get(state, 8)
    if state == 1 and variant.query_tokens == 1 and not variant.token_scales and variant.kv_dtype != torch.int8:
        warps_per_sm = 20
    if not device.clusters:  # planned launches only, which need more, and conversions take more steps
        warps_per_sm = min(warps_per_sm, 12 if state == 1 else 8)
    columns_of_warps = math.ceil(variant.group_tiles / 4)  # each thread copies a column's sink
    launch = replace(launch, warps=max(columns_of_warps, min(launch.warps, warps_per_sm)))
    if state > 2 and variant.query_tokens > 1:  # many columns: steps of one tile, as many bytes under way
        launch = replace(launch, tiles=1, stages=launch.stages * launch.tiles)
    least = max(2, math.ceil(_exchange_bytes(variant) / stage_bytes(variant, launch)))
    for stages in range(max(launch.stages, least), least - 1, -1):
        fitted = replace(launch, stages=stages, min_ctas=1)
        needed = shared_bytes(variant, fitted)
        if needed <= device.shared_per_cta:
            ctas = min(launch.min_ctas, warps_per_sm // launch.warps, device.shared_per_sm // (needed + 1024))
            return replace(fitted, min_ctas=max(1, ctas))
    if launch.warps > 2:
        fewer = max(warps for warps in (2, 4, 8) if warps < launch.warps)
        return fit(variant, replace(launch, warps=fewer, stages=3), device)
    raise NotImplementedError(f"{variant} does not fit {device.shared_per_cta} bytes of shared memory")


def _exchange_bytes(variant):
    return 8 * variant.group_tiles * (variant.head_dim + 4) * 4


def stage_bytes(variant: Variant, launch: Launch) -> int:
    """One stage of a warp's ring (load.cuh)."""
    return launch.tiles * (variant.tile_bytes + (128 if variant.token_scales else 0))


def shared_bytes(variant: Variant, launch: Launch) -> int:
    """Shared memory of a CTA (merge.cuh)."""
    heads = 8 * variant.group_tiles
    used = launch.warps * launch.stages * stage_bytes(variant, launch) + heads * launch.warps * 8 + heads * 4
    query_tiles = variant.group_tiles * variant.head_dim // 64 * variant.query_terms
    used += 1024 * query_tiles if query_tiles > 5 else 0  # the query (config.cuh)
    if launch.cluster > 1:
        slice_floats = math.ceil(heads * variant.head_dim / 4 / launch.cluster) * 4
        return used + launch.cluster * (slice_floats * 4 + heads * 8) + 8
    return used if launch.cluster == 1 else used + 4


# ---- planned KV splits: scratch memory
def planned_splits(launch: Launch, kv_heads: int, device: Device) -> int:
    """CTAs that the long rows are dealt to, of one KV head: as many as the device holds at once."""
    return max(1, device.sms * launch.min_ctas // kv_heads)


def partials_bytes(group_tiles: int, head_dim: int) -> int:
    """The two partials of a CTA that takes a quota of the long rows (merge.cuh)."""
    return 2 * 8 * group_tiles * (head_dim + 2) * 4


def workspace_bytes(batch: int, query_heads: int, kv_heads: int, head_dim: int, device: Device) -> int:
    """Scratch memory for any call of up to `batch` sequences: partials from its start, counters at its end."""
    group_tiles = math.ceil(query_heads / kv_heads / 8)
    most = kv_heads * max(1, device.sms * PLANNED_CTAS // kv_heads)
    return most * partials_bytes(group_tiles, head_dim) + batch * kv_heads * 4
