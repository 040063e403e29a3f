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
// Planned: the grid is [kv_heads, max(splits, batch)]. CTA y computes row y if that is short, and starts without the
// plan. The first `splits` CTAs then take equal quotas of all long rows, in steps of a whole CTA, across the borders of
// rows; the last of them takes the first quota, so that where rows are few those without a row have the long ones:
//
//   long rows    |       0       |      1      |            2            |
//   quotas       |    0    |    1    |    2    |    3    |    4    |         quota 1: split 1 of row 0, split 0 of row 1
//
// A CTA's second split costs about a step of the whole CTA: where quotas that are up to kApartSteps longer keep rows
// apart, every row starts with a quota of its own.
#pragma once
#include "config.cuh"

struct Split {
  int row, index, count;     // the index-th of the count splits of the row
  int length;                // of the row: tokens in the cache
  int first_token;           // of the row: first token that is read
  int first_tile, end_tile;  // of the row in a cluster, else of the split
};

// Planned: quotas of the long rows, laid end to end, in steps of a whole CTA.
struct Plan {
  int quota;      // steps a CTA
  int apart;      // every row starts with a quota of its own
  int next, end;  // of this CTA's quota: what it has not computed yet
};

// Words in one register of the warp, word i in lane i: what the loop over a split's steps does not need costs it nothing.
template <class Words> DEVICE int to_lanes(const Words& words) {
  const int lane = threadIdx.x & 31;
  int word = 0;
#pragma unroll
  for (int i = 0; i < int(sizeof(Words) / 4); i++) word = lane == i ? reinterpret_cast<const int*>(&words)[i] : word;
  return word;
}

template <class Words> DEVICE Words from_lanes(int word) {
  Words words;
#pragma unroll
  for (int i = 0; i < int(sizeof(Words) / 4); i++) reinterpret_cast<int*>(&words)[i] = __shfl_sync(kAllLanes, word, i);
  return words;
}

DEVICE int first_token(const Params& p, int length) {
  return kWindow ? max(0, length - kQueryTokens - p.window_left) : 0;
}

DEVICE int row_length(const Params& p, int row) {
  return min(load_int(p.lengths + row), p.table_width << (p.page_shift + 4));
}

// Set the tokens and tiles of the whole row.
DEVICE void set_length(Split& s, const Params& p) {
  s.length = row_length(p, s.row);
  s.first_token = first_token(p, s.length);
  s.first_tile = s.first_token >> 4;
  s.end_tile = (s.length + 15) >> 4;
}

// ---- planned splits. Every warp computes the plan alone: no barrier is needed.
constexpr int kStepTiles = kTiles * kWarps;     // a step of the whole CTA
constexpr int kShortSteps = 2 * LEAST_STEPS;    // a row of up to that is not split
constexpr int kApartSteps = 2;
constexpr int kMaxSplits = 64;                  // of a row: one CTA merges them

DEVICE int divide_up(int x, int y) { return (x + y - 1) / y; }

// Steps of a row that is long, else 0.
DEVICE int long_steps(const Params& p, int row) {
  const int length = row_length(p, row);
  const int steps = divide_up(((length + 15) >> 4) - (first_token(p, length) >> 4), kStepTiles);
  return steps > kShortSteps ? steps : 0;
}

DEVICE bool is_long(const Split& s) { return divide_up(s.end_tile - s.first_tile, kStepTiles) > kShortSteps; }

DEVICE Split first_split(const Params& p) {
  if constexpr (kCluster != 0) return {int(blockIdx.z), int(blockIdx.y), kCluster};
  return {min(int(blockIdx.y), p.batch - 1), 0, 1};
}

// The quota of this CTA: empty where no row is long.
DEVICE Plan make_plan(const Params& p) {
  if (int(blockIdx.y) >= p.splits) return {};
  const int lane = threadIdx.x & 31;
  int all = 0, longest = 0, rows = 0;
#pragma unroll 4
  for (int row = lane; row < p.batch; row += 32) {
    const int steps = long_steps(p, row);
    all += steps;
    rows += steps > 0;
    longest = max(longest, steps);
  }
  all = __reduce_add_sync(kAllLanes, unsigned(all));
  if (all == 0) return {};
  longest = __reduce_max_sync(kAllLanes, unsigned(longest));
  rows = __reduce_add_sync(kAllLanes, unsigned(rows));
  int quota = max(max(divide_up(all, p.splits), divide_up(longest, kMaxSplits)), LEAST_STEPS);
  int apart = 0;
  const int most = rows > p.splits ? 0 : quota + kApartSteps;
#pragma unroll 1
  for (int longer = quota; !apart && longer <= most; longer++) {
    int quotas = 0;
#pragma unroll 4
    for (int row = lane; row < p.batch; row += 32) quotas += divide_up(long_steps(p, row), longer);
    apart = __reduce_add_sync(kAllLanes, unsigned(quotas)) <= p.splits;
    if (apart) quota = longer;
  }
  const int place = p.splits - 1 - int(blockIdx.y);
  return {quota, apart, place * quota, (place + 1) * quota};
}

// The split that the rest of the quota starts with; false where there is none.
DEVICE bool next_split(Split& s, Plan& plan, const Params& p) {
  const int lane = threadIdx.x & 31;
  int before = 0;  // steps of the rows before these 32
#pragma unroll 1
  for (int base = 0; plan.next < plan.end && base < p.batch; base += 32) {
    int steps = base + lane < p.batch ? long_steps(p, base + lane) : 0;
    if (plan.apart) steps = divide_up(steps, plan.quota) * plan.quota;
    const int sum = __reduce_add_sync(kAllLanes, unsigned(steps));
    if (before + sum <= plan.next) {
      before += sum;
      continue;
    }
    int inclusive_sum = steps;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int left = __shfl_up_sync(kAllLanes, inclusive_sum, step);
      if (lane >= step) inclusive_sum += left;
    }
    const int source = __ffs(__ballot_sync(kAllLanes, before + inclusive_sum > plan.next)) - 1;
    const int row_end = before + __shfl_sync(kAllLanes, inclusive_sum, source);
    const int row_begin = row_end - __shfl_sync(kAllLanes, steps, source), end = min(row_end, plan.end);
    const int first_quota = row_begin / plan.quota;
    s.row = base + source;
    s.index = plan.next / plan.quota - first_quota;
    s.count = (row_end - 1) / plan.quota - first_quota + 1;
    set_length(s, p);
    s.end_tile = min(s.end_tile, s.first_tile + (end - row_begin) * kStepTiles);
    s.first_tile += (plan.next - row_begin) * kStepTiles;
    plan.next = end;
    return true;
  }
  return false;
}
