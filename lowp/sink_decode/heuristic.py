"""The choice of a launch: from the variant, the batch size, the table's width and the device alone.

A row is a sequence and KV head; a row may be cut into KV splits, one a CTA. NOTES.md has the figures behind the rules.
"""

import functools
import math
from dataclasses import replace

import torch

from lowp.jit.device import Device
from lowp.sink_decode.resources import Launch, Variant, fit, shared_bytes

STEP_BYTES = 4096  # K and V per step of a warp, or one tile if that is larger
SHORT_BYTES = 2**18  # K and V of a row; up to this a warp has few steps under any split
LEAST_BYTES = 2**16  # minimum K and V of a split: 4 steps of 4 warps
SPLIT_TOKENS = 4096  # tokens of a split where whole rows already fill the device, to balance unequal rows
LONG_ROW_SPLITS = 5  # minimum splits of a row over 2 * SPLIT_TOKENS
LONG_TOKENS = 16384  # above this the device plans the splits: one long row must not set the cost of all
EQUAL_TOKENS = 256  # bounds this small are mostly windows, so rows are equal
TWO_WARP_TOKENS = 2048  # longest row for CTAs of 2 warps, up to 8 rows an SM
MANY_TWO_WARP_TOKENS = 512  # the same above 8 rows an SM
MOST_WAVES = 4  # maximum waves of CTAs from splits; more only costs when rows are shorter than their bound


@functools.lru_cache(maxsize=4096)
def choose(variant: Variant, batch: int, kv_heads: int, longest: int, device: Device) -> Launch:
    """Choose the launch for a batch whose sequences have up to `longest` tokens.

    Few rows: a cluster each, of as many CTAs as are resident at once.
    Many rows, and very short ones: small CTAs, a row split over as many as fill the device, as a cluster.
    Bounds over LONG_TOKENS, where lengths may differ most: planned KV splits; not of one or two sequences with 8 rows
    or more, whose clusters are enough for the device. Devices without clusters: always planned.
    """
    rows, tiles = batch * kv_heads, max(1, STEP_BYTES // variant.tile_bytes)
    if not device.clusters or (longest > LONG_TOKENS and not (batch <= 2 and rows >= 8)):
        return fit(variant, _planned(variant, rows, tiles, device), device)
    row_bytes = longest * variant.tile_bytes // 16
    if 4 * rows > device.sms or row_bytes < LEAST_BYTES:
        return fit(variant, _many_rows(variant, rows, longest, row_bytes, tiles, device), device)
    return fit(variant, _few_rows(variant, rows, row_bytes, tiles, device), device)


def _a_cluster_per_gpc(variant, row_bytes, tiles, device):
    steps = row_bytes // (STEP_BYTES * 8 * 8)  # of a warp, in a cluster of 8 CTAs of 8 warps
    if tiles == 1:  # 8-bit caches need twice the arithmetic per byte, so a large ring pays at shorter rows
        stages, step_tiles, most = 3, 1, 8 if variant.kv_dtype.itemsize == 1 else 32
    elif steps <= 4:
        stages, step_tiles, most = 2, tiles, 16
    elif steps <= 8 or (variant.token_scales and variant.kv_dtype == torch.int8):  # has no registers for more tiles
        stages, step_tiles, most = 3, tiles, 16
    else:
        stages, step_tiles, most = 2, tiles + 1, 16
    # Two CTAs an SM: the next kernel's clusters, let in early, have room in every GPC, and no two share one.
    for launch in (Launch(8, stages, step_tiles, 2, 8, early=True), Launch(6, 2, tiles, 2, 8, early=True)):
        if steps <= most and fit(variant, launch, device).min_ctas == 2:
            return launch
    # For longer loops a ring that takes the whole SM is worth more, for long ones with no overlap at all.
    return _halved_to_fit(variant, Launch(8, 3, 2 * tiles, 1, 8, overlap=steps <= 16), device)


def _halved_to_fit(variant, launch, device):
    """The launch, with half its tiles where all of them do not fit."""
    fits = shared_bytes(variant, launch) <= device.shared_per_cta
    return launch if fits else replace(launch, tiles=launch.tiles // 2)


def _few_rows(variant, rows, row_bytes, tiles, device):
    if 16 * rows <= device.sms:
        return _a_cluster_per_gpc(variant, row_bytes, tiles, device)
    small = Launch(4, 3, tiles, 4, 8)
    if row_bytes <= SHORT_BYTES:
        return _all_resident(variant, rows, small, device)
    if 8 * rows <= device.sms:
        return Launch(12, 2, tiles, 1, min(8, 3 * device.sms // (4 * rows)))
    large = Launch(8, 2, tiles, 2, 8)
    return _all_resident(variant, rows, max(large, small, key=lambda x: _warps_an_sm(variant, x, device)), device)


def _warps_an_sm(variant, launch, device):
    fitted = fit(variant, launch, device)
    return fitted.warps * fitted.min_ctas


def _all_resident(variant, rows, launch, device):
    """The launch with the largest clusters that are all resident; 85% of the device, since GPCs differ in size."""
    cluster = int(0.85 * _resident_ctas(variant, launch, device)) // rows
    return replace(launch, cluster=max(1, min(8, cluster)))


def _many_rows(variant, rows, longest, row_bytes, tiles, device):
    splits = math.ceil(longest / SPLIT_TOKENS) if longest <= 2 * SPLIT_TOKENS else LONG_ROW_SPLITS
    small = _small(variant, rows, splits, row_bytes, tiles, device)
    resident = _resident_ctas(variant, small, device)
    cluster = _resident_splits(variant, rows, row_bytes, small, device)
    if cluster < splits:
        cluster = _splits_in_full_waves(rows, min(splits, max(1, MOST_WAVES * resident // rows)), resident)
    large = Launch(8, 2, tiles, 2, 1)
    if cluster == 2 and row_bytes <= SHORT_BYTES and fit(variant, large, device).min_ctas == 2:
        return large
    if cluster > 1 or rows <= resident:
        return replace(small, cluster=cluster)
    # Equal rows: fastest with all rows resident. Unequal rows: fastest when no warp holds a row for long.
    if longest <= EQUAL_TOKENS and rows <= 16 * device.sms:
        return Launch(2, 2, 1, 8, 1) if rows <= 8 * device.sms else Launch(1, 2, tiles, 16, 1)
    two_warps = longest <= (TWO_WARP_TOKENS if rows <= 8 * device.sms else MANY_TWO_WARP_TOKENS)
    return Launch(2, 2, tiles, 8, 1) if two_warps else replace(small, cluster=1)


def _resident_ctas(variant, launch, device):
    """CTAs that the device holds at once."""
    return fit(variant, launch, device).min_ctas * device.sms


def _resident_splits(variant, rows, row_bytes, launch, device):
    """KV splits of a row that are all resident, and not too short."""
    resident = int(0.97 * _resident_ctas(variant, launch, device)) // rows
    return max(1, min(8, resident, row_bytes // LEAST_BYTES))


def _small(variant, rows, splits, row_bytes, tiles, device):
    """CTAs of 4 warps: with 3 stages, or with 2 and five an SM, where those split rows further or fill waves."""
    three, two = Launch(4, 3, tiles, 4, 8), Launch(4, 2, tiles, 5, 8)
    if row_bytes <= SHORT_BYTES or fit(variant, two, device).min_ctas < 5:
        return three
    ctas_three, ctas_two = (_resident_ctas(variant, launch, device) for launch in (three, two))
    splits_three, splits_two = (_resident_splits(variant, rows, row_bytes, launch, device) for launch in (three, two))
    further = splits_two > splits_three and splits_two * ctas_three >= splits_three * ctas_two  # no emptier
    in_waves = splits_three < splits == LONG_ROW_SPLITS and rows <= ctas_three
    return two if further or in_waves else three


def _splits_in_full_waves(rows, least, resident):
    """The fewest KV splits of a row, `least` or more, with which the last wave of CTAs is not mostly empty."""
    waves = {splits: rows * splits / resident for splits in range(least, 9)}
    return next((splits for splits, n in waves.items() if n >= 0.8 * math.ceil(n)), least)


def _planned(variant, rows, tiles, device):
    # With long steps rows of middling length are split less: only where there are enough of them for the device.
    if device.clusters and 24 <= rows <= device.sms:
        return _halved_to_fit(variant, Launch(8, 2, 2 * tiles, 1, 0), device)
    if rows <= 2 * device.sms:
        return Launch(8, 2, tiles, 2, 0)
    return Launch(4, 2, tiles, 4, 0)


# ---- candidates, which sweep.py measures
# Warps, stages, steps of STEP_BYTES a stage, CTAs an SM. PLANNED: that the device plans splits for.
SHAPES = (
    *((8, 2, 1, 2), (8, 3, 1, 2), (8, 2, 1.5, 2), (12, 2, 1, 1), (8, 3, 2, 1), (8, 2, 2, 1), (16, 2, 1, 1)),
    *((4, 3, 1, 4), (4, 2, 1, 5), (4, 2, 2, 2), (2, 2, 1, 8), (2, 2, 0.5, 8), (1, 2, 1, 16)),
)
PLANNED = ((8, 2, 1, 2), (8, 3, 1, 2), (4, 2, 1, 4), (4, 3, 1, 4), (8, 2, 2, 1), (2, 2, 1, 8))
CANDIDATE_WAVES = 2  # of clusters
LEAST_SPLIT_BYTES = 2**15


def candidates(variant: Variant, batch: int, kv_heads: int, longest: int, device: Device) -> list[Launch]:
    """Enumerate the launches that fit: shapes of CTAs x cluster sizes, and planned splits."""
    rows, base = batch * kv_heads, max(1, STEP_BYTES // variant.tile_bytes)
    launches = {}
    for warps, stages, steps, ctas in SHAPES:
        most = min(8, longest * variant.tile_bytes // 16 // LEAST_SPLIT_BYTES) if device.clusters else 0
        for cluster in range(1, max(1, most) + 1):
            resident = ctas * device.sms // rows  # CTAs of a row
            if cluster <= max(1, CANDIDATE_WAVES * resident) and not 2 * cluster <= min(most, resident):
                launches[Launch(warps, stages, round(steps * base), ctas, cluster)] = None
    for warps, stages, steps, ctas in PLANNED:
        for least in (2, 4, 8):
            launches[Launch(warps, stages, round(steps * base), ctas, 0, least_steps=least)] = None
    fitted = {fit(variant, launch, device): launch for launch in launches if launch.tiles}
    return [launch for launch, wanted in fitted.items() if (launch.warps, launch.tiles) == (wanted.warps, wanted.tiles)]
