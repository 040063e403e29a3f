"""What a launch is expected to take: waves of clusters, steps of a CTA, bytes of the device. NOTES.md explains it.

The constants are an H200's, in microseconds where nothing else is said; `fit` measures them from a file of `sweep`.
"""

import math
from typing import NamedTuple

from lowp.sink_decode.resources import Launch

Lengths = tuple[tuple[int, int], ...]  # (sequences, tiles of 16 tokens of each)


class Shape(NamedTuple):
    """A CTA: warps, stages, steps of STEP_BYTES a stage, CTAs an SM at least.

    start: a call that reads next to nothing. step_8, step_16: a step of a CTA, with 8 and 16 bits a value.
    """

    warps: int
    stages: int
    steps: float
    ctas: int
    start: float
    step_8: float
    step_16: float


class Costs(NamedTuple):
    kb: float  # a KB that one SM reads while all do
    cluster: float  # a merge in a cluster
    placed: float  # each CTA an SM of the first wave
    beside: float  # each CTA an SM, where the next call's do not fit beside them
    burst: float  # each KB that an SM requests at once
    wave: float  # each wave after the first
    waves: float  # more than one wave
    uneven: float  # bytes take longer by this share of the relative difference between SMs
    packed: float  # where the last of several waves lies: 0 over all SMs, 1 on as few as hold it
    chain: float  # share of a step that bytes never hide
    norm: float  # exponent under which the times of bytes and of steps add up
    plan: float  # a plan, and a merge in device memory
    border: float  # quotas that cross the borders of rows
    rest: float  # bytes take longer by this share of what quotas are larger than equal shares
    planned_wave: float  # each wave of a planned grid after the first


COSTS = Costs(
    kb=0.02942,
    cluster=0.1538,
    placed=0.1684,
    beside=0.03815,
    burst=0.008472,
    wave=0.6916,
    waves=1.057,
    uneven=0.1368,
    packed=0.1761,
    chain=0.04345,
    norm=1.477,
    plan=4.064,
    border=0.9028,
    rest=0.1069,
    planned_wave=1.443,
)
SHAPES = (
    Shape(8, 2, 1, 2, 2.05, 0.322, 0.228),
    Shape(8, 3, 1, 2, 2, 0.313, 0.125),
    Shape(8, 2, 1.5, 2, 2.08, 0.414, 0.297),
    Shape(8, 3, 2, 1, 2.12, 0.367, 0.13),
    Shape(8, 2, 2, 1, 2.18, 0.332, 0.2),
    Shape(4, 3, 1, 4, 1.89, 0.232, 0.189),
    Shape(4, 2, 1, 5, 1.97, 0.322, 0.228),
    Shape(4, 2, 2, 3, 1.89, 0.388, 0.269),
    Shape(2, 2, 1, 8, 1.9, 0.259, 0.197),
    Shape(2, 2, 0.5, 8, 1.79, 0.184, 0.197),
    Shape(1, 2, 1, 16, 1.79, 0.22, 0.175),
)
PLANNED = (  # steps as above
    Shape(8, 2, 1, 2, 2.14, 0.322, 0.228),
    Shape(4, 2, 1, 4, 2.03, 0.322, 0.228),
    Shape(8, 2, 2, 1, 1.95, 0.332, 0.2),
    Shape(2, 2, 1, 8, 2.14, 0.259, 0.197),
)
TILE_US, WARP_TILE_US = 0.03, 0.22  # a tile at least: of an SM, of a warp (1 x 131072 on few SMs, few warps)
MOST_UNEVEN = 0.4
MOST_SPLITS = 64  # of a planned row (split.cuh)
APART_STEPS = 2


class Work(NamedTuple):
    """What the launches of a choice share. tile_kb: K and V of 16 tokens."""

    batch: int
    kv_heads: int
    tile_kb: float
    sixteen_bits: bool
    sms: int


def call_us(work: Work, shape: Shape, launch: Launch, lengths: Lengths, costs: Costs | None = None) -> float:
    """Estimate a call."""
    estimate = _clusters_us if launch.cluster else _planned_us
    return estimate(work, shape, launch, lengths, costs or COSTS)


def bytes_us(work: Work, tiles: float, costs: Costs | None = None) -> float:
    """Estimate the reading of so many tiles of one KV head."""
    return tiles * work.tile_kb * (costs or COSTS).kb / work.sms


def resident_clusters(launch: Launch, sms: int) -> int:
    """Clusters that the device holds at once: GPCs differ in size, so large ones leave SMs empty."""
    share = 0.97 if launch.cluster <= 2 * launch.min_ctas else 0.85 if launch.min_ctas == 2 else 0.84
    return max(1, int((share if launch.cluster > 1 else 1) * launch.min_ctas * sms) // launch.cluster)


def _clusters_us(work, shape, launch, lengths, costs):
    """Estimate a cluster for every row: waves of those that are resident at once, the last one not full."""
    rows, cluster, ctas = work.batch * work.kv_heads, launch.cluster, launch.min_ctas
    resident = resident_clusters(launch, work.sms)
    waves = -(-rows // resident) - 1  # full ones before the last
    last = rows - waves * resident
    mean, longest = sum(n * tiles for n, tiles in lengths) / work.batch, max(tiles for _, tiles in lengths)
    step_tiles = launch.warps * launch.tiles
    steps, most_steps = math.ceil(mean / cluster / step_tiles), math.ceil(longest / cluster / step_tiles)
    step_us = _step_us(work, shape)

    sm_ctas = min(ctas, math.ceil(last * cluster / (work.sms * (0.86 if cluster > 1 else 1))))
    sm_ctas += costs.packed * (ctas - sm_ctas) if waves else 0
    uneven = 1 + costs.uneven * min(MOST_UNEVEN, sm_ctas * work.sms / (last * cluster) - 1)
    row_us, chain_us = bytes_us(work, mean, costs), costs.chain * steps * step_us
    last_us = _sum(last * row_us * uneven, (1 - costs.chain) * most_steps * step_us, costs)
    last_us = max(last_us, longest / cluster * _tile_us(launch)) + chain_us
    requested = min(steps, launch.stages - 1) * min(step_tiles, mean / cluster) * work.tile_kb

    us = shape.start + costs.cluster * (cluster > 1) + costs.burst * sm_ctas * requested
    us += costs.placed * math.ceil(min(rows, resident) * cluster / work.sms)
    us += costs.beside * ctas * (2 * rows > resident)
    return us + last_us + waves * (resident * row_us + chain_us + costs.wave) + costs.waves * (waves > 0)


def _planned_us(work, shape, launch, lengths, costs):
    """Estimate short rows in CTAs of their own, then equal quotas of the long ones (split.cuh)."""
    rows, resident, step_tiles = work.batch * work.kv_heads, launch.min_ctas * work.sms, launch.warps * launch.tiles
    splits, most_short = max(1, resident // work.kv_heads), 2 * launch.least_steps
    steps = [(n, -(-tiles // step_tiles), tiles) for n, tiles in lengths]
    long, short = ([row for row in steps if (row[1] > most_short) == is_long] for is_long in (True, False))
    step_us, least_us = _step_us(work, shape), step_tiles * _tile_us(launch)
    step_bytes_us = bytes_us(work, step_tiles * work.kv_heads, costs)

    ctas = max(rows, splits * work.kv_heads if long else 0)
    us = shape.start + costs.beside * launch.min_ctas * (2 * ctas > resident)
    us += costs.placed * min(launch.min_ctas, math.ceil(rows / work.sms))
    if short:
        most, tiles = max(count for _, count, _ in short), sum(n * tiles for n, _, tiles in short)
        waves = -(-rows // resident)
        us += max(_sum(tiles / step_tiles * step_bytes_us, most * step_us, costs), waves * most * least_us)
        us += costs.planned_wave * (waves - 1)
        sm_ctas = math.ceil(min(sum(n for n, _, _ in short) * work.kv_heads, resident) / work.sms)
        us += costs.burst * sm_ctas * min(most, launch.stages - 1) * step_tiles * work.tile_kb
    if long:
        total, most = sum(n * count for n, count, _ in long), max(count for _, count, _ in long)
        quota = max(-(-total // splits), -(-most // MOST_SPLITS), launch.least_steps)
        quotas = range(quota, quota + APART_STEPS + 1)
        apart = [quota for quota in quotas if sum(n * -(-count // quota) for n, count, _ in long) <= splits]
        quota = apart[0] if apart else quota
        larger = 1 + costs.rest * min(2, quota * splits / total - 1)
        us += max(_sum(total * step_bytes_us * larger, quota * step_us, costs), quota * least_us)
        us += costs.plan + costs.border * (not apart and sum(n for n, _, _ in long) > 1)
    return us


def _step_us(work, shape):
    return shape.step_16 if work.sixteen_bits else shape.step_8


def _tile_us(launch):
    return max(TILE_US, WARP_TILE_US / launch.warps)


def _sum(bytes_part, steps_part, costs):
    return (bytes_part**costs.norm + steps_part**costs.norm) ** (1 / costs.norm)
