// Which KV split of which sequence a CTA works on: here a split is a part, a sequence and KV head a row, and what one
// CTA has of it its share. Nothing here depends on lengths that the host knows: under graph replay the
// grid stays, and the shares follow seq_lens.
//
// A share's tiles (16 tokens) are dealt out in steps of kTiles, round robin over its warps (of a cluster: of all CTAs):
//
//   tile      first        first + kTiles     ...                          (kTiles = 2, W = kWorkers warps)
//             [0 1]        [2 3]        ...   [2W-2 2W-1]   [2W 2W+1]   ...
//   worker     0            1                  W - 1          0
//
// Every warp has as much as the others to one step, and where its first step begins needs no length.
//
// Cluster: the grid is [kv_heads, kCluster, batch]; a row is a cluster's.
// Planned: the grid is [kv_heads, shares + batch]. The first CTAs have the parts of rows that are long among the
// batch's, in proportion to their tiles, `shares` parts in all at most: long work begins first. CTA shares + y has row
// y, and begins as if nothing else were to be known; a row that is cut it leaves to the others. Short rows never wait
// for the plan, and where no row is long the first CTAs end at once.
#pragma once
#include "config.cuh"

struct Share {
  int row, part, parts;  // this CTA is the part-th of those that share the row
  int length;            // of the row: tokens in the cache
  int from;              // of the row: first token that is read
  int first, end;        // tiles: of a cluster the row's, of a part its own
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

// Which tokens: of the row, or of one of the parts that it is cut into.
DEVICE void set_length(Share& s, const Params& p) {
  s.length = row_length(p, s.row);
  s.from = first_token(p, s.length);
  s.first = s.from >> 4;
  s.end = (s.length + 15) >> 4;
  if (kCluster == 0 && s.parts > 1) {
    const int steps = (s.end - s.first + kTiles - 1) / kTiles, row_first = s.first;
    s.first = row_first + steps * s.part / s.parts * kTiles;
    s.end = min(s.end, row_first + steps * (s.part + 1) / s.parts * kTiles);
  }
}

DEVICE Share clustered_share() { return {int(blockIdx.z), int(blockIdx.y), kCluster}; }

// ---- planned shares. Every warp works them out alone: no barrier is needed.
constexpr int kLeastPart = 4 * kTiles * kWarps;  // tiles: 4 steps a warp
constexpr int kMostParts = 64;                   // one CTA merges them
DEVICE bool is_long(int tiles) { return tiles > 2 * kLeastPart; }

// Tiles of all long rows.
DEVICE int long_tiles(const Params& p) {
  int mine = 0;
#pragma unroll 4
  for (int row = threadIdx.x & 31; row < p.batch; row += 32) {
    const int tiles = tiles_of(p, row);
    mine += is_long(tiles) ? tiles : 0;
  }
  return __reduce_add_sync(kAllLanes, unsigned(mine));
}

// Parts of a row, rounded down; 1: it is not cut.
DEVICE int parts_of(const Params& p, int tiles, int all_tiles) {
  return is_long(tiles) ? max(1, min(min(int(unsigned(tiles * p.shares) / all_tiles), tiles / kLeastPart), kMostParts)) : 1;
}

// CTA n has the n-th part, counted through the rows that are cut; parts = 0 where there are not so many.
DEVICE Share planned_share(const Params& p) {
  int before = int(blockIdx.y);  // parts before this CTA's that are not yet counted
  if (before >= p.shares) return {before - p.shares, 0, 1};
  const int lane = threadIdx.x & 31, all_tiles = long_tiles(p);
  for (int base = 0; all_tiles > 0 && base < p.batch; base += 32) {
    const int cut_into = base + lane < p.batch ? parts_of(p, tiles_of(p, base + lane), all_tiles) : 1;
    const int parts = cut_into > 1 ? cut_into : 0;
    int through = parts;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int left = __shfl_up_sync(kAllLanes, through, step);
      if (lane >= step) through += left;
    }
    const unsigned beyond = __ballot_sync(kAllLanes, through > before);
    if (beyond) {
      const int found = __ffs(beyond) - 1;
      const int its_parts = __shfl_sync(kAllLanes, parts, found);
      return {base + found, before - (__shfl_sync(kAllLanes, through, found) - its_parts), its_parts};
    }
    before -= __shfl_sync(kAllLanes, through, 31);
  }
  return {0, 0, 0};
}

DEVICE bool is_cut(const Params& p, const Share& s) {
  const int tiles = s.end - s.first;
  return is_long(tiles) && parts_of(p, tiles, long_tiles(p)) > 1;
}
