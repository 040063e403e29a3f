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
// Planned: the grid is [kv_heads, shares + batch]. CTA shares + y has row y, and begins as if nothing else were to be
// known; a row that is dealt out it leaves to the first CTAs: long work begins first. Those take equal quotas of the
// steps of all long rows, one row after the other, and go from share to share:
//
//   long rows    |       0       |      1      |            2            |
//   CTAs         |    0    |    1    |    2    |    3    |    4    |         CTA 1: part 1 of row 0, part 0 of row 1
//
// Where a CTA has its SM for itself, nothing would fill the gap between two shares. There, and below sm_90, a row is cut
// into parts in proportion to its steps, rounded down, and a CTA takes one part.
// Short rows never wait for the plan, and where no row is long the first CTAs end at once.
#pragma once
#include "config.cuh"

struct Share {
  int row, part, parts;  // this is the part-th of those that the row is cut into
  int length;            // of the row: tokens in the cache
  int from;              // of the row: first token that is read
  int first, end;        // tiles: of a cluster the row's, of a part its own
};

// Planned: what is dealt out, in units of one step, or of one part where a CTA takes one.
struct Plan {
  int steps;       // of all long rows
  int quota;       // units that a CTA takes; 0: nothing is dealt out
  int next, last;  // units of all rows: where this CTA's next share begins, and where its last one ends
};

DEVICE int first_token(const Params& p, int length) {
  return kWindow ? max(0, length - kQueryTokens - p.window_left) : 0;
}

DEVICE int row_length(const Params& p, int row) {
  return min(load_int(p.lengths + row), p.table_width << (p.page_shift + 4));
}

DEVICE int steps_of(int tiles) { return (tiles + kTiles - 1) / kTiles; }

// The whole row.
DEVICE void set_length(Share& s, const Params& p) {
  s.length = row_length(p, s.row);
  s.from = first_token(p, s.length);
  s.first = s.from >> 4;
  s.end = (s.length + 15) >> 4;
}

DEVICE Share clustered_share() { return {int(blockIdx.z), int(blockIdx.y), kCluster}; }

// ---- planned shares. Every warp works them out alone: no barrier is needed.
// Whether a CTA takes one part, or a quota of steps: with that the loop over shares spills below sm_90.
#if __CUDA_ARCH__ >= 900
constexpr bool kOnePart = MIN_CTAS == 1;
#else
constexpr bool kOnePart = true;
#endif
constexpr int kLeastSteps = 4 * kWarps;   // of a part or a quota: 4 a warp
constexpr int kShort = 2 * kLeastSteps;   // rows of up to that are never dealt out
constexpr int kMostParts = 64;            // one CTA merges them

DEVICE int steps_of_row(const Params& p, int row) {
  const int length = row_length(p, row);
  return steps_of(((length + 15) >> 4) - (first_token(p, length) >> 4));
}

// All but a CTA's place.
DEVICE Plan plan_of(const Params& p) {
  int all = 0, longest = 0;
#pragma unroll 4
  for (int row = threadIdx.x & 31; row < p.batch; row += 32) {
    const int steps = steps_of_row(p, row);
    all += steps > kShort ? steps : 0;
    longest = max(longest, steps);
  }
  all = __reduce_add_sync(kAllLanes, unsigned(all));
  if (all == 0) return {};
  if constexpr (kOnePart) return {all, 1};
  longest = __reduce_max_sync(kAllLanes, unsigned(longest));
  const int least = max(kLeastSteps, (longest + kMostParts - 1) / kMostParts);
  const int quota = (max((all + p.shares - 1) / p.shares, least) + kWarps - 1) / kWarps * kWarps;  // warps have as many
  // Rows about as long as a quota stay as they are, and many that are not much longer than short ones.
  if (longest <= quota + kWarps && (p.batch <= p.shares || longest <= 2 * kShort)) return {};
  return {all, quota};
}

// A row's units; 0: it is not dealt out.
DEVICE int units_of(const Params& p, const Plan& plan, int steps) {
  if (steps <= kShort || plan.quota == 0) return 0;
  if constexpr (!kOnePart) return steps;
  const int parts = min(min(int(unsigned(steps * p.shares) / plan.steps), steps / kLeastSteps), kMostParts);
  return parts > 1 ? parts : 0;
}

DEVICE bool is_dealt_out(const Params& p, const Share& s) {
  const int steps = steps_of(s.end - s.first);
  return steps > kShort && units_of(p, plan_of(p), steps) > 0;
}

// The share that begins at plan.next, which moves past it; false where there is none.
DEVICE bool next_share(Share& s, Plan& plan, const Params& p) {
  const int lane = threadIdx.x & 31;
  int before = 0;  // units of the rows before these 32
  for (int base = 0; plan.next < plan.last && base < p.batch; base += 32) {
    const int steps = base + lane < p.batch ? steps_of_row(p, base + lane) : 0, units = units_of(p, plan, steps);
    int through = units;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int left = __shfl_up_sync(kAllLanes, through, step);
      if (lane >= step) through += left;
    }
    const unsigned beyond = __ballot_sync(kAllLanes, before + through > plan.next);
    if (beyond) {
      const int found = __ffs(beyond) - 1, row_end = before + __shfl_sync(kAllLanes, through, found);
      const int row_units = __shfl_sync(kAllLanes, units, found), row_begin = row_end - row_units;
      const int row_steps = __shfl_sync(kAllLanes, steps, found), end = min(row_end, plan.last);
      const auto tile = [&](int unit) { return (kOnePart ? row_steps * unit / row_units : unit) * kTiles; };
      s.row = base + found;
      s.part = int(blockIdx.y) - row_begin / plan.quota;
      s.parts = (row_end - 1) / plan.quota - row_begin / plan.quota + 1;
      set_length(s, p);
      s.end = min(s.end, s.first + tile(end - row_begin));
      s.first += tile(plan.next - row_begin);
      plan.next = end;
      return true;
    }
    before += __shfl_sync(kAllLanes, through, 31);
  }
  return false;
}

// The first share of this CTA; of no parts where it has none.
DEVICE Share planned_share(Plan& plan, const Params& p) {
  const int cta = int(blockIdx.y);
  if (cta >= p.shares) return {cta - p.shares, 0, 1};
  plan = plan_of(p);
  plan.next = plan.quota * cta;
  plan.last = plan.next + plan.quota;
  Share s{};
  next_share(s, plan, p);
  return s;
}
