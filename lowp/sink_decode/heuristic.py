"""The choice of a launch: enumerate those that fit, estimate each over what lengths may be, take the least.

Nothing of a call but its variant, batch, bound of the lengths and device is known. NOTES.md explains the choice.
"""

import functools
import heapq
from dataclasses import replace
from typing import NamedTuple

import torch

from lowp.jit.device import Device
from lowp.sink_decode.cost import PLANNED, SHAPES, Lengths, Shape, Work, bytes_us, call_us, resident_clusters
from lowp.sink_decode.resources import Launch, Variant, fit

NEAR_TOKENS = 16384  # a bound up to this is taken for near the lengths, as a caller's hint is
STEP_BYTES = 4096  # K and V per step of a warp, or one tile if that is larger
LEAST_SPLIT_BYTES = 2**15
FULL = 0.9  # of the clusters of 7 that fit at once: with fewer, SMs hold unequal numbers of CTAs
# Where clusters of 8 fill this share of the device, the next call's come onto some SMs only: no overlap (5x8192 13.9
# for 15.5 us).
PARTLY = (0.5, 0.85)
MOST_WAVES = 2  # of clusters of more than one CTA
LEAST_STEPS = (8, 16)  # of a planned split
LAW_US = 3.5  # an estimate is judged as a multiple of LAW_US + the time of its bytes
POWER = 4  # of the ratio in the mean: a choice that is bad at some lengths is worse than one that is fair at all
LONG_ROW_BOUND = 2.0  # one long row among short ones may take so many times what the best planned launch takes
SHORT_TILES = 32  # of those short ones


@functools.lru_cache(maxsize=4096)
def choose(variant: Variant, batch: int, kv_heads: int, longest: int, device: Device, near: bool = False) -> Launch:
    """Choose the launch for a batch whose sequences have up to `longest` tokens; near: most of them nearly as many."""
    work = work_of(variant, batch, kv_heads, device)
    shapes = candidates(variant, batch, kv_heads, longest, device)
    long_row = _groups((1, -(-longest // 16)), (batch - 1, SHORT_TILES))
    times = {launch: call_us(work, shape, launch, long_row) for launch, shape in shapes.items()}
    bound = LONG_ROW_BOUND * min(us for launch, us in times.items() if launch.cluster == 0)
    launches = [launch for launch, us in times.items() if us <= bound]
    longest += 15 * variant.window  # a window begins anywhere in its first tile
    return _least(work, shapes, launches, prior(work, longest, near, min(shape.start for shape in shapes.values())))


def work_of(variant: Variant, batch: int, kv_heads: int, device: Device) -> Work:
    factors = {"int8": variant.kv_dtype == torch.int8, "token_scales": variant.token_scales}
    tile_kb = (variant.tile_bytes + 2 * 16 * 4 * variant.token_scales) / 1024
    sixteen_bits, names = variant.kv_dtype.itemsize == 2, tuple(name for name in factors if factors[name])
    return Work(batch, kv_heads, tile_kb, sixteen_bits, device.sms, names)


def candidates(variant: Variant, batch: int, kv_heads: int, longest: int, device: Device) -> dict[Launch, Shape]:
    """Enumerate the launches that fit: shapes of CTAs x cluster sizes, and planned splits."""
    launches, rows = {}, batch * kv_heads
    most = max(1, min(8, longest * variant.tile_bytes // 16 // LEAST_SPLIT_BYTES))
    ctas = {}
    for shape in SHAPES if device.clusters else ():
        ctas.setdefault(fit(variant, _launch(variant, shape, 1), device), shape)
    # A cluster of 8 has a GPC of its own, at two CTAs an SM with room for the next call (bf16 1x8192 6.5 us, in 7 7.0).
    alone = most == 8 and 16 * rows <= device.sms and any(launch.min_ctas > 1 for launch in ctas)
    for launch, shape in ctas.items():
        slots = launch.min_ctas * device.sms // rows  # CTAs of a row
        largest = min(most, 1 + MOST_WAVES * slots, 8 if launch.min_ctas > 1 else 6)
        for cluster in range(8 if alone else 1, largest + 1):
            split = fit(variant, replace(launch, cluster=cluster), device)
            full = rows / resident_clusters(split, device.sms)
            partly = cluster == 8 and split.min_ctas > 2 and PARTLY[0] <= full < PARTLY[1]
            if 2 * cluster <= min(most, slots) or (cluster == 7 and not FULL <= full <= 1):
                continue
            launches.setdefault(replace(split, overlap=not partly), shape)
    for shape in PLANNED:
        for least_steps in LEAST_STEPS:
            launch = fit(variant, replace(_launch(variant, shape, 0), least_steps=least_steps), device)
            if shape.warps > 1 or launch.min_ctas == shape.ctas:
                launches.setdefault(launch, shape)
    return launches


def _launch(variant, shape, cluster):
    tiles = max(1, round(shape.steps * max(1, STEP_BYTES // variant.tile_bytes)))
    return Launch(shape.warps, shape.stages, tiles, shape.ctas, cluster)


class Case(NamedTuple):
    """Lengths that are expected: their weight, and what the law allows. ahead: what the longer cases add at least."""

    weight: int
    lengths: Lengths
    law_us: float
    ahead: float


def prior(work: Work, longest: int, near: bool, start_us: float) -> list[Case]:
    """Lengths that are expected, the shortest first: equal, or half of them 5/8 and half 7/8 of the longest.

    near: of the bound, or else of it and its halves, down to 16 tokens. start_us: of every launch at least.
    """
    tiles, cases, batch, ahead = -(-longest // 16), [], work.batch, 0.0
    while tiles > 1 or not cases:
        halves = _groups((batch - batch // 2, -(-tiles * 7 // 8)), (batch // 2, -(-tiles * 5 // 8)))
        for weight, lengths in (2, ((batch, tiles),)), (1, halves):
            us = bytes_us(work, sum(n * tiles for n, tiles in lengths) * work.kv_heads)
            cases.append(Case(weight, lengths, LAW_US + us, ahead))
            ahead += weight * ((start_us + us) / (LAW_US + us)) ** POWER
        tiles = 1 if near else tiles // 2
    return cases[::-1]


def _groups(*groups):
    return tuple(group for group in groups if group[0])


def _least(work, shapes, launches, cases):
    """Return the launch with the least sum, over the cases, of how far it is over the law.

    Adds to the sum that is the least at best, until that one is complete: most of the others never are.
    """
    sums = [(0.0, index, 0.0, 0) for index in range(len(launches))]  # at best, launch, so far, cases
    while sums[0][3] < len(cases):
        _, index, total, count = sums[0]
        case, launch = cases[count], launches[index]
        total += case.weight * (call_us(work, shapes[launch], launch, case.lengths) / case.law_us) ** POWER
        heapq.heapreplace(sums, (total + case.ahead, index, total, count + 1))
    return launches[sums[0][1]]
