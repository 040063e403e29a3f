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
    waiting: float  # no overlap with the next call
    wave: float  # each wave after the first
    waves: float  # more than one wave
    uneven: float  # bytes take longer by this share of the relative difference between SMs
    uneven_clusters: float  # the same where CTAs come in clusters
    shared: float  # bytes take longer where some of the next call's clusters come beside these
    packed: float  # where the last of several waves lies: 0 over all SMs, 1 on as few as hold it
    chain: float  # share of a step that bytes never hide
    norm: float  # exponent under which the times of bytes and of steps add up
    plan: float  # a plan
    scan: float  # of a sequence's length, for each CTA an SM
    split: float  # a merge in device memory
    merge: float  # each partial that a warp of the merging CTA reads
    rounding: float  # bytes take longer by this share of what quotas are larger than equal shares
    planned_wave: float  # each wave of a planned grid after the first
    int8: float  # times the steps and tiles of E4M3
    token_scales: float  # times the steps and tiles without them


COSTS = Costs(
    kb=0.0294,
    cluster=0.08855,
    placed=0.1569,
    beside=0.00783,
    burst=0.008046,
    waiting=0.07314,
    wave=0.8135,
    waves=0.6762,
    uneven=0.219,
    uneven_clusters=0.1265,
    shared=0.02397,
    packed=0.2855,
    chain=0.001829,
    norm=1.366,
    plan=0.3068,
    scan=0.00293,
    split=3.244,
    merge=0.2993,
    rounding=0.003477,
    planned_wave=1.201,
    int8=1.0,  # not fitted: E4M3's (NOTES.md)
    token_scales=1.0,  # not fitted
)
SHAPES = (
    Shape(8, 2, 1, 2, 2.1, 0.277, 0.168),
    Shape(8, 3, 1, 2, 2.09, 0.228, 0.0998),
    Shape(8, 2, 1.5, 2, 2.2, 0.298, 0.129),
    Shape(8, 3, 2, 1, 2.22, 0.316, 0.00768),
    Shape(8, 2, 2, 1, 2.26, 0.327, 0.2),
    Shape(4, 3, 1, 4, 1.97, 0.2, 0.142),
    Shape(4, 2, 1, 5, 2.08, 0.276, 0.216),
    Shape(4, 2, 2, 3, 2.01, 0.346, 0.228),
    Shape(2, 2, 1, 8, 2.08, 0.203, 0.201),
    Shape(2, 2, 0.5, 8, 2.11, 0.166, 0.197),
    Shape(1, 2, 1, 16, 1.88, 0.235, 0.162),
)
PLANNED = (  # steps as above
    Shape(8, 2, 1, 2, 2.23, 0.377, 0.258),
    Shape(4, 2, 1, 4, 2.04, 0.338, 0.261),
    Shape(8, 2, 2, 1, 2.32, 0.294, 0.222),
    Shape(2, 2, 1, 8, 2.19, 0.337, 0.243),
    Shape(2, 2, 0.5, 8, 2.26, 0.213, 0.256),
    Shape(1, 2, 1, 16, 2.17, 0.33, 0.244),
)
TILE_US, WARP_TILE_US = (0.031, 0.045), 0.22  # a tile at least: of an SM with 8, 16 bits (1x131072, 5x2048), of a warp
BESIDE = (0.3, 0.9)  # of the resident clusters: with these the next call's come onto some of the SMs only
MOST_UNEVEN = 0.7
MOST_SPLITS = 64  # of a planned row (split.cuh)
APART_STEPS = 2


class Work(NamedTuple):
    """What the launches of a choice share. tile_kb: K, V and scales of 16 tokens. factors: of its steps, in `Costs`."""

    batch: int
    kv_heads: int
    tile_kb: float
    sixteen_bits: bool
    sms: int
    factors: tuple[str, ...] = ()


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
    step_us = _step_us(work, shape, costs)

    sm_ctas = min(ctas, math.ceil(last * cluster / (work.sms * (0.86 if cluster > 1 else 1))))
    sm_ctas += costs.packed * (ctas - sm_ctas) if waves else 0
    share = costs.uneven_clusters if cluster > 1 else costs.uneven
    uneven = 1 + share * min(MOST_UNEVEN, sm_ctas * work.sms / (last * cluster) - 1)
    if launch.overlap and cluster > 1 and ctas > 1 and BESIDE[0] < rows / resident < BESIDE[1]:
        uneven += costs.shared
    row_us, chain_us = bytes_us(work, mean, costs), costs.chain * steps * step_us
    last_us = _sum(last * row_us * uneven, (1 - costs.chain) * most_steps * step_us, costs)
    last_us = max(last_us, longest / cluster * _tile_us(work, launch, costs)) + chain_us
    requested = min(steps, launch.stages - 1) * min(step_tiles, mean / cluster) * work.tile_kb

    us = shape.start + costs.cluster * (cluster > 1) + costs.burst * sm_ctas * requested
    us += costs.placed * math.ceil(min(rows, resident) * cluster / work.sms)
    us += costs.beside * ctas * (2 * rows > resident) + costs.waiting * (not launch.overlap)
    return us + last_us + waves * (resident * row_us + chain_us + costs.wave) + costs.waves * (waves > 0)


def _planned_us(work, shape, launch, lengths, costs):
    """Estimate short rows in CTAs of their own, then equal quotas of the long ones (split.cuh)."""
    rows, resident, step_tiles = work.batch * work.kv_heads, launch.min_ctas * work.sms, launch.warps * launch.tiles
    splits, most_short = max(1, resident // work.kv_heads), 2 * launch.least_steps
    steps = [(n, -(-tiles // step_tiles), tiles) for n, tiles in lengths]
    long_rows = [row for row in steps if row[1] > most_short]
    short_rows = [row for row in steps if row[1] <= most_short]
    step_us, least_us = _step_us(work, shape, costs), step_tiles * _tile_us(work, launch, costs)
    step_bytes_us = bytes_us(work, step_tiles * work.kv_heads, costs)

    ctas = max(rows, splits * work.kv_heads if long_rows else 0)
    us = shape.start + costs.beside * launch.min_ctas * (2 * ctas > resident)
    us += costs.placed * min(launch.min_ctas, math.ceil(rows / work.sms))
    if short_rows:
        most, tiles = max(count for _, count, _ in short_rows), sum(n * tiles for n, _, tiles in short_rows)
        waves, short_ctas = -(-rows // resident), sum(n for n, _, _ in short_rows) * work.kv_heads
        sm_ctas = math.ceil(min(short_ctas, resident) / work.sms)
        uneven = 1 + costs.uneven * min(MOST_UNEVEN, max(0, sm_ctas * work.sms / short_ctas - 1))
        bytes_part = tiles / step_tiles * step_bytes_us * (1 if long_rows else uneven)
        us += max(_sum(bytes_part, most * step_us, costs), waves * most * least_us)
        us += (costs.planned_wave + costs.placed * launch.min_ctas) * (waves - 1)
        us += costs.burst * sm_ctas * min(most, launch.stages - 1) * step_tiles * work.tile_kb
    if long_rows:
        total, most = sum(n * count for n, count, _ in long_rows), max(count for _, count, _ in long_rows)
        quota = max(-(-total // splits), -(-most // MOST_SPLITS), launch.least_steps)
        quotas = range(quota, quota + APART_STEPS + 1)
        apart = [quota for quota in quotas if sum(n * -(-count // quota) for n, count, _ in long_rows) <= splits]
        quota = apart[0] if apart else quota
        larger = 1 + costs.rounding * min(2, quota * splits / total - 1)
        us += max(_sum(total * step_bytes_us * larger, quota * step_us, costs), quota * least_us)
        us += costs.plan + costs.scan * work.batch * launch.min_ctas
        partials = -(-most // quota) + (not apart and sum(n for n, _, _ in long_rows) > 1)
        us += (costs.split + costs.merge * partials / launch.warps) * (partials > 1)
    return us


def _step_us(work, shape, costs):
    return (shape.step_16 if work.sixteen_bits else shape.step_8) * _factor(work, costs)


def _tile_us(work, launch, costs):
    return max(TILE_US[work.sixteen_bits], WARP_TILE_US / launch.warps) * _factor(work, costs)


def _factor(work, costs):
    return math.prod(getattr(costs, name) for name in work.factors)


def _sum(bytes_part, steps_part, costs):
    return (bytes_part**costs.norm + steps_part**costs.norm) ** (1 / costs.norm)
