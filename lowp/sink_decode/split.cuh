// Which KV split of which row this CTA computes. A row is one sequence and KV head; a split is a range of its tokens.
// No choice here depends on lengths that the host knows: under graph replay the grid stays, and the splits follow
// seq_lens.
//
// A split's tiles (16 tokens) are dealt out in steps of kTiles, round robin over its warps (in a cluster: those of all
// CTAs):
//
//   tile      first        first + kTiles     ...                          (kTiles = 2, W = kWorkers warps)
//             [0 1]        [2 3]        ...   [2W-2 2W-1]   [2W 2W+1]   ...
//   worker     0            1                  W - 1          0
//
// All warps have equal work to within one step, and where a warp's first step begins needs no length.
//
// Cluster: the grid is [kv_heads, kCluster, batch]; a cluster computes a row.
// Planned: the grid is [kv_heads, splits + batch]. The first `splits` CTAs compute the splits of rows that are long
// among the batch's, in proportion to their tiles: long work starts first. CTA splits + y computes row y, and starts
// without the plan; it exits if row y is split. Short rows never wait for the plan, and where no row is long the first
// CTAs exit at once.
#pragma once
#include "config.cuh"

struct Split {
  int row, index, count;     // the index-th of the count splits of the row
  int length;                // of the row: tokens in the cache
  int first_token;           // of the row: first token that is read
  int first_tile, end_tile;  // of the row in a cluster, else of the split
};

DEVICE int first_token(const Params& p, int length) {
  return kWindow ? max(0, length - kQueryTokens - p.window_left) : 0;
}

DEVICE int row_length(const Params& p, int row) {
  return min(load_int(p.lengths + row), p.table_width << (p.page_shift + 4));
}

DEVICE int tiles_of(const Params& p, int row) {
  const int length = row_length(p, row);
  return ((length + 15) >> 4) - (first_token(p, length) >> 4);
}

// Set the tokens and tiles of the row, or of a planned split of it.
DEVICE void set_length(Split& s, const Params& p) {
  s.length = row_length(p, s.row);
  s.first_token = first_token(p, s.length);
  s.first_tile = s.first_token >> 4;
  s.end_tile = (s.length + 15) >> 4;
  if (kCluster == 0 && s.count > 1) {
    const int steps = (s.end_tile - s.first_tile + kTiles - 1) / kTiles, row_first_tile = s.first_tile;
    s.first_tile = row_first_tile + steps * s.index / s.count * kTiles;
    s.end_tile = min(s.end_tile, row_first_tile + steps * (s.index + 1) / s.count * kTiles);
  }
}

DEVICE Split cluster_split() { return {int(blockIdx.z), int(blockIdx.y), kCluster}; }

// ---- planned splits. Every warp computes the plan alone: no barrier is needed.
constexpr int kMinSplitTiles = 4 * kTiles * kWarps;  // 4 steps a warp
constexpr int kMaxSplits = 64;                       // of a row: one CTA merges them
DEVICE bool is_long(int tiles) { return tiles > 2 * kMinSplitTiles; }

// Tiles of all long rows.
DEVICE int long_tiles(const Params& p) {
  int lane_tiles = 0;
#pragma unroll 4
  for (int row = threadIdx.x & 31; row < p.batch; row += 32) {
    const int tiles = tiles_of(p, row);
    lane_tiles += is_long(tiles) ? tiles : 0;
  }
  return __reduce_add_sync(kAllLanes, unsigned(lane_tiles));
}

// Splits of a row, rounded down; 1: it is not split.
DEVICE int splits_of(const Params& p, int tiles, int all_tiles) {
  return is_long(tiles) ? max(1, min(min(int(unsigned(tiles * p.splits) / all_tiles), tiles / kMinSplitTiles), kMaxSplits)) : 1;
}

// CTA n computes the n-th split, counted through the rows that are split; count = 0 past the last one.
DEVICE Split planned_split(const Params& p) {
  int remaining = int(blockIdx.y);  // splits before this CTA's that are not yet counted
  if (remaining >= p.splits) return {remaining - p.splits, 0, 1};
  const int lane = threadIdx.x & 31, all_tiles = long_tiles(p);
  for (int base = 0; all_tiles > 0 && base < p.batch; base += 32) {
    const int row_splits = base + lane < p.batch ? splits_of(p, tiles_of(p, base + lane), all_tiles) : 1;
    const int splits = row_splits > 1 ? row_splits : 0;
    int inclusive_sum = splits;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int left = __shfl_up_sync(kAllLanes, inclusive_sum, step);
      if (lane >= step) inclusive_sum += left;
    }
    const unsigned past = __ballot_sync(kAllLanes, inclusive_sum > remaining);
    if (past) {
      const int source = __ffs(past) - 1;
      const int count = __shfl_sync(kAllLanes, splits, source);
      return {base + source, remaining - (__shfl_sync(kAllLanes, inclusive_sum, source) - count), count};
    }
    remaining -= __shfl_sync(kAllLanes, inclusive_sum, 31);
  }
  return {0, 0, 0};
}

DEVICE bool is_split(const Params& p, const Split& s) {
  const int tiles = s.end_tile - s.first_tile;
  return is_long(tiles) && splits_of(p, tiles, long_tiles(p)) > 1;
}
