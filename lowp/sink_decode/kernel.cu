// Decode attention with sinks over a paged, quantised KV cache: 1 to 4 query tokens a sequence.
// reference.py has the formula.
//
//   share.cuh   which part of which row this CTA has               a CTA: some tokens of one row and one KV head,
//   load.cuh    1. load: block table, keys, values to the ring              for all query heads and tokens
//   query.cuh   the query as MMA operand                           a warp: every so many-th step of it, alone
//   step.cuh    2. scores  3. softmax  4. values, step by step
//   merge.cuh   5. merge: warps, CTAs, sink, output
#include "merge.cuh"

extern "C" __global__ void __launch_bounds__(kThreads, MIN_CTAS) sink_decode(const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) char shared[];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, kv_head = blockIdx.x;

#if __CUDA_ARCH__ >= 900
  if constexpr (kCluster > 1) {
    if (threadIdx.x == 0) expect_partials(p, shared_address(shared + kBarrierAt), blockIdx.y);
    cluster_arrive();
  }
#endif
  wait_for_previous_kernel();

  // Loads from a row's start need no length, and leave before it is known; of a row that was dealt out it is.
  Plan plan = {};
  Share share = kCluster ? clustered_share() : planned_share(plan, p);
  if (kCluster == 0 && share.parts == 0) return;
  const bool dealt = kCluster == 0 && plan.last > 0;
  if (kWindow && !dealt) set_length(share, p);
  const unsigned ring = shared_address(shared) + warp * kRingBytes;
  Stream stream = make_stream(p, share, ring, warp, lane, kv_head);
  stream.begin();
  if (!kWindow && !dealt) set_length(share, p);
  if (kCluster == 0 && !dealt && is_dealt_out(p, share)) return;
  stream.end = share.end;
  RawQuery raw;
  load_query(raw, p, share.row, kv_head, lane);
  if (threadIdx.x < columns_of(p)) {
    const unsigned head = threadIdx.x - query_token(p, threadIdx.x) * p.group;
    copy_4(shared_address(shared + kSinksAt) + threadIdx.x * 4, p.sinks + kv_head * p.group + head);
  }
  float k_scale = 1.f, v_scale = 1.f;
  if constexpr (!kTokenScales && !kChannelScales)
    if (p.k_scale) k_scale = load_float(p.k_scale + kv_head * p.k_scale_head);
  if constexpr (!kTokenScales)
    if (p.v_scale) v_scale = load_float(p.v_scale + kv_head * p.v_scale_head);

  bool more;  // shares, of a CTA that rows are dealt out to
  do {
    // The steps of this warp: kStages - 1 are under way while one is computed.
    const int all_steps = steps_of(share.end - share.first);
    const int steps = (all_steps - stream.worker + kWorkers - 1) / kWorkers;  // 0 where the first is past all
#pragma unroll
    for (int i = 0; i < kStages - 1; i++) {
      if (i < steps) stream.issue(i, i);
      copies_commit();
    }
    Query query;
    if constexpr (kQueryShared) query.at = shared_address(shared + kQueryAt) + lane * 8;
    prepare_query(query, raw, p, p.sm_scale * k_scale * kLog2E, lane);
    if constexpr (kQueryShared) __syncthreads();
    State state = {};
#pragma unroll
    for (int n = 0; n < kGroupTiles; n++) state.max[n][0] = state.max[n][1] = kNothing;
    const Reader reader(ring, lane);
    // Query token i sees the tokens from + i to to + i - 1; without a window, from leaves out none.
    const int to = share.length - kQueryTokens + 1;
    const int from = kQueryTokens == 1 ? share.from : kWindow ? to - 1 - p.window_left : -kQueryTokens;
    int token = (share.first + stream.worker * kTiles) * 16, slot = 0, next_slot = kStages - 1;
#pragma unroll 1
    for (int i = 0; i < steps; i++) {
      __syncwarp();  // the slot that is filled next has been read
      if (i + kStages - 1 < steps) stream.issue(i + kStages - 1, next_slot);
      copies_commit();
      if (kEarly && i + kStages >= steps) let_next_kernel_start();
      copies_wait<kStages - 1>();
      __syncwarp();  // what other lanes copied is visible
      const unsigned at = slot * kSlotBytes;
      if (token + 16 * kTiles > to || (kWindow && token < from + kQueryTokens - 1))
        compute_step<true>(state, query, reader, at, token, from, to);
      else
        compute_step<false>(state, query, reader, at, token, from, to);
      token += kWorkers * kTiles * 16;
      slot = slot + 1 == kStages ? 0 : slot + 1;
      next_slot = next_slot + 1 == kStages ? 0 : next_slot + 1;
    }
    if (plan.next == plan.last) let_next_kernel_start();

    copies_wait<0>();  // the sinks, where there was no step
    store_state(state, shared, warp, lane);
    __syncthreads();
    const Share done = share;
    more = kCluster == 0 && !kOnePart && next_share(share, plan, p);
    if (more) {
      stream = make_stream(p, share, ring, warp, lane, kv_head);
      stream.begin();
      stream.end = share.end;
    }
    merge_share(p, shared, done, kv_head, v_scale / (kE4m3 ? kE4m3Unit : 1.f));
    if (more) {
      load_query(raw, p, share.row, kv_head, lane);
      __syncthreads();  // the next share's keys may take the place of what has been merged
    }
  } while (more);
}
