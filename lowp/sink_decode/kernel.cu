// Decode attention with sinks over a paged, quantised KV cache: 1 to 4 query tokens a sequence.
// lowp/paged/reference.py has the formula.
//
//   split.cuh   which KV split of which row this CTA computes      a CTA: some tokens of one row and one KV head,
//   load.cuh    1. load: block table, keys, values to the ring              for all query heads and tokens
//   query.cuh   the query as MMA operand                           a warp: every kWorkers-th step of it, alone
//   step.cuh    2. scores  3. softmax  4. values, step by step     (of int8 the first and the last: int8.cuh)
//   merge.cuh   5. merge: warps, CTAs, sink, output
#include "merge.cuh"

extern "C" __global__ void __launch_bounds__(kThreads, MIN_CTAS) sink_decode(const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) char shared[];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, kv_head = blockIdx.x;

#if __CUDA_ARCH__ >= 900
  if constexpr (kCluster > 1) {
    if (threadIdx.x == 0) expect_partials(p, shared_address(shared + kBarrierOffset), blockIdx.y);
    cluster_arrive();
  }
#endif
  wait_for_previous_kernel();

  // Loads from a row's start need no length, and are issued before it is known.
  Split split = first_split(p);
  const unsigned ring = shared_address(shared) + warp * kRingBytes;
  if (kWindow) set_length(split, p);
  Stream stream = make_stream(p, split, ring, warp, lane, kv_head);
  stream.prefetch_entries();
  Plan plan = {};
  if constexpr (kCluster == 0) plan = make_plan(p);
  if (!kWindow) set_length(split, p);
  if constexpr (kCluster == 0)
    if (int(blockIdx.y) >= p.batch || is_long(split)) {
      if (!next_split(split, plan, p)) return;
      stream = make_stream(p, split, ring, warp, lane, kv_head);
      stream.prefetch_entries();
    }
  stream.end_tile = split.end_tile;
  RawQuery raw;
  load_query(raw, p, split.row, kv_head, lane);
  if (threadIdx.x < columns_of(p)) {
    const unsigned head = threadIdx.x - query_token(p, threadIdx.x) * p.group;
    copy_4(shared_address(shared + kSinksOffset) + threadIdx.x * 4, p.sinks + kv_head * p.group + head);
  }
  float k_scale = 1.f, v_scale = 1.f;
  if constexpr (!kTokenScales && !kChannelScales)
    if (p.k_scale) k_scale = load_constant_float(p.k_scale + kv_head * p.k_scale_head);
  if constexpr (!kTokenScales)
    if (p.v_scale) v_scale = load_constant_float(p.v_scale + kv_head * p.v_scale_head);

  bool more;  // splits; of a planned CTA
  do {
    // The steps of this warp: kStages - 1 are in flight while one is computed.
    const int all_steps = (split.end_tile - split.first_tile + kTiles - 1) / kTiles;
    const int steps = (all_steps - stream.worker + kWorkers - 1) / kWorkers;  // 0 where its first step is past the last
#pragma unroll
    for (int i = 0; i < kStages - 1; i++) {
      if (i < steps) stream.issue(i, i);
      copies_commit();
    }
    Query query;
    if constexpr (kQueryShared) query.address = shared_address(shared + kQueryOffset) + lane * 8;
    prepare_query(query, raw, p, p.sm_scale * k_scale * kLog2E, lane);
    if constexpr (kQueryShared) __syncthreads();
    State state = {};
#pragma unroll
    for (int n = 0; n < kGroupTiles; n++) state.max[n][0] = state.max[n][1] = kEmptyMax;
    const Reader reader(ring, lane);
    // Query token i sees the tokens [begin + i, end + i); without a window, all up to end + i.
    const int end = split.length - kQueryTokens + 1;
    const int begin = kQueryTokens == 1 ? split.first_token : kWindow ? end - 1 - p.window_left : -kQueryTokens;
    int token = (split.first_tile + stream.worker * kTiles) * 16, stage = 0, next_stage = kStages - 1;
    const int split_word = kCluster == 0 ? to_lanes(split) : 0, plan_word = kCluster == 0 ? to_lanes(plan) : 0;
#pragma unroll 1
    for (int i = 0; i < steps; i++) {
      __syncwarp();  // the stage that is filled next has been read
      if (i + kStages - 1 < steps) stream.issue(i + kStages - 1, next_stage);
      copies_commit();
      copies_wait<kStages - 1>();
      __syncwarp();  // what other lanes copied is visible
      const unsigned offset = stage * kStageBytes;
      if (token + 16 * kTiles > end || (kWindow && token < begin + kQueryTokens - 1))
        compute_step<true>(state, query, reader, offset, token, begin, end);
      else
        compute_step<false>(state, query, reader, offset, token, begin, end);
      token += kWorkers * kTiles * 16;
      stage = stage + 1 == kStages ? 0 : stage + 1;
      next_stage = next_stage + 1 == kStages ? 0 : next_stage + 1;
    }
    if constexpr (kCluster == 0) {
      split = from_lanes<Split>(split_word);
      plan = from_lanes<Plan>(plan_word);
    }
    if (kCluster != 0 || plan.next >= plan.end) let_next_kernel_start();

    copies_wait<0>();  // the sinks, where there was no step
    store_state(state, shared, warp, lane);
    __syncthreads();
    const Split finished = split;
    more = kCluster == 0 && next_split(split, plan, p);
    if (more) {
      stream = make_stream(p, split, ring, warp, lane, kv_head);
      stream.prefetch_entries();  // under way during the merge
      stream.end_tile = split.end_tile;
    }
    merge_split(p, shared, finished, kv_head, v_scale / (kE4m3 ? kE4m3Unit : kInt8 ? int8_unit() : 1.f));
    if (more) {
      load_query(raw, p, split.row, kv_head, lane);
      __syncthreads();  // the ring may be written: what it held has been merged
    }
  } while (more);
}
