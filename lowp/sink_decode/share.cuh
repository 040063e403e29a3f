// Which part of which row a CTA works on. Nothing here depends on lengths that the host knows: under graph replay the
// grid stays, and the shares follow seq_lens.
//
// A row's tiles (16 tokens) are dealt out in steps of kTiles, round robin over all warps of all CTAs that share it:
//
//   tile      first        first + kTiles     ...                          (kTiles = 2, `workers` warps in all)
//             [0 1]        [2 3]        ...   [2W-2 2W-1]   [2W 2W+1]   ...
//   worker     0            1                  W - 1          0
//
// Every share is as long as the others to one step, and where a warp's first step begins needs no length.
#pragma once
#include "config.cuh"

struct Share {
  int row, part, parts;  // this CTA is the part-th of those that share the row
  int length;            // tokens in the cache
  int from;              // first token that is read
  int first, end;        // tiles
};

DEVICE int first_token(const Params& p, int length) {
  return kWindow ? max(0, length - 1 - p.window_left) : 0;
}

DEVICE int row_length(const Params& p, int row) {
  return min(load_int(p.lengths + row), p.table_width << (p.page_shift + 4));
}

DEVICE void set_length(Share& s, const Params& p, int length) {
  s.length = length;
  s.from = first_token(p, length);
  s.first = s.from >> 4;
  s.end = (length + 15) >> 4;
}

// A cluster a row and KV head.
DEVICE Share clustered_share() { return {int(blockIdx.z), int(blockIdx.y), kCluster}; }

// Parts for a row in proportion to its tiles, rounded down, at least one, and none without a step for each warp.
DEVICE int parts_of(int tiles, float parts_per_tile) {
  constexpr int kLeast = kTiles * kWarps;
  return max(1, min(int(tiles * parts_per_tile), (tiles + kLeast - 1) / kLeast));
}

// CTA y of a KV head is the y-th part, counted through the rows in order. Every warp works it out alone: the lengths
// come from L1 the second time, and no barrier is needed. Returns parts = 0 where there is nothing left to do.
DEVICE Share planned_share(const Params& p) {
  const int lane = threadIdx.x & 31;
  auto tiles_of = [&](int row) {
    if (row >= p.batch) return 0;
    const int length = row_length(p, row);
    return ((length + 15) >> 4) - (first_token(p, length) >> 4);
  };
  unsigned total = 0;
  for (int base = 0; base < p.batch; base += 32) total += __reduce_add_sync(kAllLanes, unsigned(tiles_of(base + lane)));
  const float parts_per_tile = p.shares / float(max(total, 1u));
  int before = blockIdx.y;  // parts before this CTA's that are not yet counted
  for (int base = 0; base < p.batch; base += 32) {
    const int parts = base + lane < p.batch ? parts_of(tiles_of(base + lane), parts_per_tile) : 0;
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
