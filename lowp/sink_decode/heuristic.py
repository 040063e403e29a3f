"""Which launch: from the problem, the batch size, the table's width and the device alone. NOTES.md has the figures."""

import functools
import math
from dataclasses import dataclass, replace

import torch

STEP_BYTES = 4096  # keys and values that a warp takes at a time, where a tile is not more
SHORT_BYTES = 2**18  # keys and values of a row up to which the steps of a warp are few, however it is cut
LEAST_BYTES = 2**16  # keys and values that a part of a row has at least: 4 steps of 4 warps
PART_TOKENS = 4096  # of a row, that one CTA takes where the rows alone fill the device, so that unequal rows balance
LONGEST_PARTS = 5  # at least, of rows of over 2 * PART_TOKENS, which may be the more unequal
LONG_TOKENS = 16384  # rows over this are cut by plan: a batch of one such and many short must not take its length each
EQUAL_TOKENS = 256  # bounds up to this are windows above all, with all rows equal
TWO_WARP_TOKENS = 2048  # of a row that two warps take, where there are up to eight rows an SM
MANY_TWO_WARP_TOKENS = 512  # the same where there are more
MOST_WAVES = 4  # of CTAs, that rows are cut for: more would only cost where the rows are shorter than their bound
PLANNED_CTAS = 8  # CTAs an SM, at most, where shares are planned


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
    def query_parts(self) -> int:
        return 1 if self.query_bf16 or self.kv_dtype != torch.bfloat16 else 2

    @property
    def tile_bytes(self) -> int:
        return 2 * 16 * self.head_dim * self.kv_dtype.itemsize


@dataclass(frozen=True)
class Launch:
    """A launch: warps a CTA, ring slots a warp, tiles of 16 tokens a step, CTAs an SM at least, CTAs that share a row.

    cluster 0: shares are planned on the device; 1: one CTA a row and KV head. overlap: the kernel may be launched
    before the previous one on its stream has ended (it waits for it itself). early: it lets the next one start so with
    its last loads, not after its loop.
    """

    warps: int
    stages: int
    tiles: int
    min_ctas: int
    cluster: int
    overlap: bool = True
    early: bool = False


@functools.lru_cache(maxsize=4096)
def choose(problem: Problem, batch: int, kv_heads: int, longest: int, device: Device) -> Launch:
    """The launch for a batch whose sequences have up to `longest` tokens. Figures behind the rules: NOTES.md.

    Rows are sequences and KV heads. Few rows: a cluster each, of as many CTAs as have room at once.
    Many rows, and very short ones: small CTAs, a row cut into as many as fill the device, as a cluster.
    Bounds over LONG_TOKENS, where lengths may differ most: planned shares; not of one or two sequences with 8 rows or
    more, whose clusters are enough for the device. Devices without clusters: always planned.
    """
    rows, tiles = batch * kv_heads, max(1, STEP_BYTES // problem.tile_bytes)
    if not device.clusters or (longest > LONG_TOKENS and not (batch <= 2 and rows >= 8)):
        return fit(problem, _planned(problem, rows, longest, tiles, device), device)
    row_bytes = longest * problem.tile_bytes // 16
    if 4 * rows > device.sms or row_bytes < LEAST_BYTES:
        return fit(problem, _many_rows(problem, rows, longest, row_bytes, tiles, device), device)
    return fit(problem, _few_rows(problem, rows, row_bytes, tiles, device), device)


def _one_cluster_a_gpc(problem, row_bytes, tiles, device):
    steps = row_bytes // (STEP_BYTES * 8 * 8)  # of a warp, in a cluster of 8 CTAs of 8 warps
    if tiles == 1:  # 8 bits are twice the arithmetic a byte: the ring is worth more sooner
        stages, step_tiles, most = 3, 1, 8 if problem.kv_dtype.itemsize == 1 else 32
    elif steps <= 4:
        stages, step_tiles, most = 2, tiles, 16
    elif steps <= 8 or (problem.token_scales and problem.kv_dtype == torch.int8):  # has no registers for more tiles
        stages, step_tiles, most = 3, tiles, 16
    else:
        stages, step_tiles, most = 2, tiles + 1, 16
    # Two CTAs an SM: the next kernel's clusters, let in early, have room in every GPC, and no two share one.
    for one in (Launch(8, stages, step_tiles, 2, 8, early=True), Launch(6, 2, tiles, 2, 8, early=True)):
        if steps <= most and fit(problem, one, device).min_ctas == 2:
            return one
    # For longer loops a ring that takes the whole SM is worth more, for long ones with no overlap at all.
    return _deep(problem, Launch(8, 3, 2 * tiles, 1, 8, overlap=steps <= 16), device)


def _deep(problem, launch, device):
    """The launch, or half its tiles a step where that is all that fits."""
    fits = shared_bytes(problem, launch) <= device.shared_per_cta
    return launch if fits else replace(launch, tiles=launch.tiles // 2)


def _few_rows(problem, rows, row_bytes, tiles, device):
    if 16 * rows <= device.sms:
        return _one_cluster_a_gpc(problem, row_bytes, tiles, device)
    small = Launch(4, 3, tiles, 4, 8)
    if row_bytes <= SHORT_BYTES:
        return _at_once(problem, rows, small, device)
    if 8 * rows <= device.sms:
        return Launch(12, 2, tiles, 1, min(8, 3 * device.sms // (4 * rows)))
    large = Launch(8, 2, tiles, 2, 8)
    return _at_once(problem, rows, max(large, small, key=lambda one: _warps_an_sm(problem, one, device)), device)


def _warps_an_sm(problem, launch, device):
    one = fit(problem, launch, device)
    return one.warps * one.min_ctas


def _at_once(problem, rows, launch, device):
    """The launch with clusters as large as all have room at once: not the whole device's, for GPCs differ."""
    room = int(0.85 * _places(problem, launch, device)) // rows
    return replace(launch, cluster=max(1, min(8, room)))


def _many_rows(problem, rows, longest, row_bytes, tiles, device):
    parts = math.ceil(longest / PART_TOKENS) if longest <= 2 * PART_TOKENS else LONGEST_PARTS
    small = _small(problem, rows, parts, row_bytes, tiles, device)
    places, cluster = _places(problem, small, device), _room(problem, rows, row_bytes, small, device)
    if cluster < parts:
        cluster = _parts_in_full_waves(rows, min(parts, max(1, MOST_WAVES * places // rows)), places)
    whole = Launch(8, 2, tiles, 2, 1)
    if cluster == 2 and row_bytes <= SHORT_BYTES and fit(problem, whole, device).min_ctas == 2:
        return whole
    if cluster > 1 or rows <= places:
        return replace(small, cluster=cluster)
    # Equal rows are fastest where all are on the device at once; unequal ones, where none is one warp's for long.
    if longest <= EQUAL_TOKENS and rows <= 16 * device.sms:
        return Launch(2, 2, 1, 8, 1) if rows <= 8 * device.sms else Launch(1, 2, tiles, 16, 1)
    two_warps = longest <= (TWO_WARP_TOKENS if rows <= 8 * device.sms else MANY_TWO_WARP_TOKENS)
    return Launch(2, 2, tiles, 8, 1) if two_warps else replace(small, cluster=1)


def _places(problem, launch, device):
    """CTAs that the device holds at once."""
    return fit(problem, launch, device).min_ctas * device.sms


def _room(problem, rows, row_bytes, launch, device):
    """Parts of a row that all have a place at once, and are not too short."""
    return max(1, min(8, int(0.97 * _places(problem, launch, device)) // rows, row_bytes // LEAST_BYTES))


def _small(problem, rows, parts, row_bytes, tiles, device):
    """CTAs of 4 warps: with 3 slots, or with 2 and five an SM, where those cut rows into more parts or fill waves."""
    deep, lean = Launch(4, 3, tiles, 4, 8), Launch(4, 2, tiles, 5, 8)
    if row_bytes <= SHORT_BYTES or fit(problem, lean, device).min_ctas < 5:
        return deep
    places, more_places = (_places(problem, one, device) for one in (deep, lean))
    room, more = (_room(problem, rows, row_bytes, one, device) for one in (deep, lean))
    more_parts = more > room and more * places >= room * more_places  # and no more of the places empty
    in_waves = room < parts == LONGEST_PARTS and rows <= places
    return lean if more_parts or in_waves else deep


def _parts_in_full_waves(rows, least, at_once):
    """The fewest parts of a row, `least` or more, with which the last wave of CTAs is not mostly empty."""
    waves = {parts: rows * parts / at_once for parts in range(least, 9)}
    return next((parts for parts, n in waves.items() if n >= 0.8 * math.ceil(n)), least)


def _planned(problem, rows, longest, tiles, device):
    # With long steps rows of middling length are cut less: only where there are enough of them for the device.
    if device.clusters and 24 <= rows <= device.sms:
        return _deep(problem, Launch(8, 2, 2 * tiles, 1, 0), device)
    if rows <= 2 * device.sms:
        return Launch(8, 2, tiles, 2, 0)
    two_warps = rows > 4 * device.sms and longest <= TWO_WARP_TOKENS  # on devices without clusters alone; not measured
    return Launch(2, 2, tiles, PLANNED_CTAS, 0) if two_warps else Launch(4, 2, tiles, 4, 0)


def fit(problem: Problem, launch: Launch, device: Device) -> Launch:
    """The launch cut down to what registers and shared memory allow: its warps, tiles, ring slots and CTAs an SM.

    Raises NotImplementedError where not even the least fits.
    """
    # Registers: 16 warps an SM have 128 each, enough for 64 dims of 8 heads, and for 128 dims of e4m3; twice as much
    # state needs 168, then 255. The simplest problems do with 96, which 20 warps have.
    state = problem.head_dim // 64 * problem.group_tiles
    one_tile_of_e4m3 = problem.group_tiles == 1 and problem.kv_dtype == torch.float8_e4m3fn
    warps_per_sm = 16 if one_tile_of_e4m3 else {1: 16, 2: 12}.get(state, 8)
    if state == 1 and problem.query_tokens == 1 and not problem.token_scales and problem.kv_dtype != torch.int8:
        warps_per_sm = 20
    columns_of_warps = math.ceil(problem.group_tiles / 4)  # each thread copies a column's sink
    launch = replace(launch, warps=max(columns_of_warps, min(launch.warps, warps_per_sm)))
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
        fewer = max(warps for warps in (2, 4, 8) if warps < launch.warps)
        return fit(problem, replace(launch, warps=fewer, stages=3), device)
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
    query_tiles = problem.group_tiles * problem.head_dim // 64 * problem.query_parts
    used += 1024 * query_tiles if query_tiles > 5 else 0  # the query (config.cuh)
    if launch.cluster > 1:
        slice_floats = math.ceil(heads * problem.head_dim / 4 / launch.cluster) * 4
        return used + launch.cluster * (slice_floats * 4 + heads * 8) + 8
    return used if launch.cluster == 1 else used + 4


# ---- planned shares: scratch memory
def shares_of(launch: Launch, kv_heads: int, device: Device) -> int:
    """CTAs for the parts of long rows, a KV head: as many as the device holds at once."""
    return max(1, device.sms * launch.min_ctas // kv_heads)


def partial_bytes(group_tiles: int, head_dim: int) -> int:
    """One part's partial (merge.cuh)."""
    return 8 * group_tiles * (head_dim + 2) * 4


def workspace_bytes(batch: int, query_heads: int, kv_heads: int, head_dim: int, device: Device) -> int:
    """Scratch memory for any call of up to `batch` sequences: partials from its start, counters at its end."""
    group_tiles = math.ceil(query_heads / kv_heads / 8)
    most = kv_heads * max(1, device.sms * PLANNED_CTAS // kv_heads)
    return most * partial_bytes(group_tiles, head_dim) + batch * kv_heads * 4
