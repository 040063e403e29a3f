// The plan of split.cuh on a CPU. Reads calls, a line each: batch, splits, window_left, table_width, then the lengths.
// Prints a line for every split of every CTA: call, CTA, row, index, count, first tile, end tile.
#include <cstdio>
#include <vector>

#include "split.cuh"

static Params params;
static int call;

// The splits of this CTA, in kernel.cu's order.
static void print_splits() {
  Split split = first_split(params);
  Plan plan = make_plan(params);
  set_length(split, params);
  if (blockIdx.y >= params.batch || is_long(split))
    if (!next_split(split, plan, params)) return;
  do {
    if (threadIdx.x == 0)
      std::printf("%d %d %d %d %d %d %d\n", call, blockIdx.y, split.row, split.index, split.count, split.first_tile,
                  split.end_tile);
  } while (next_split(split, plan, params));
}

int main() {
  while (std::scanf("%d %d %d %d", &params.batch, &params.splits, &params.window_left, &params.table_width) == 4) {
    std::vector<int> lengths(params.batch);
    for (int& length : lengths)
      if (std::scanf("%d", &length) != 1) return 1;
    params.lengths = lengths.data();
    for (blockIdx.y = 0; blockIdx.y < max(params.splits, params.batch); blockIdx.y++) run_warp(print_splits);
    call++;
  }
}
