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

  // Loads from a row's start need no length, and leave before it is known.
  Share share = kCluster ? clustered_share() : planned_share(p);
  if (kCluster == 0 && share.parts == 0) return;
  const bool length_first = kWindow || (kCluster == 0 && share.parts > 1);
  if (length_first) set_length(share, p);
  const unsigned ring = shared_address(shared) + warp * kRingBytes;
  Stream stream = make_stream(p, share, ring, warp, lane, kv_head);
  stream.begin();
  if (!length_first) set_length(share, p);
  if (kCluster == 0 && share.parts == 1 && is_cut(p, share)) return;
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

  // The steps of this warp: kStages - 1 are under way while one is computed.
  const int all_steps = (share.end - share.first + kTiles - 1) / kTiles;
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
  let_next_kernel_start();

  // Merge. From here on a thread has 4 elements of the columns' output, or several times 4.
  copies_wait<0>();  // the sinks, where there was no step
  store_state(state, shared, warp, lane);
  __syncthreads();
  const int elements = columns_of(p) * kHeadDim;
  const float v_factor = v_scale / (kE4m3 ? kE4m3Unit : 1.f);
  if (kCluster == 1 || (kCluster == 0 && share.parts == 1)) {
    for (int e = threadIdx.x * 4; e < elements; e += kThreads * 4)
      finish(p, shared, share.row, kv_head, e, merge_warps(shared, e), v_factor);
    return;
  }
#if __CUDA_ARCH__ >= 900
  if constexpr (kCluster > 1) {
    cluster_wait();  // every barrier of the cluster is ready
    for (int e = threadIdx.x * 4; e < elements; e += kThreads * 4) send_partial(shared, blockIdx.y, e, merge_warps(shared, e));
    const int from = blockIdx.y * kSliceFloats, to = min(from + kSliceFloats, elements);
    if (from + int(threadIdx.x) * 4 < to) barrier_wait(shared_address(shared + kBarrierAt));
    for (int e = from + threadIdx.x * 4; e < to; e += kThreads * 4)
      finish(p, shared, share.row, kv_head, e, merge_cluster(shared, e), v_factor);
  }
#endif
  if constexpr (kCluster == 0) {
    float* mine = partial_at(p, kv_head, blockIdx.y);
    for (int e = threadIdx.x * 4; e < elements; e += kThreads * 4) store_partial(mine, e, merge_warps(shared, e));
    unsigned* flag = reinterpret_cast<unsigned*>(shared + kFlagAt);
    if (!is_last(p.arrived + share.row * gridDim.x + kv_head, share.parts, flag)) return;
    const float* first = partial_at(p, kv_head, blockIdx.y - share.part);
    for (int e = threadIdx.x * 4; e < elements; e += kThreads * 4)
      finish(p, shared, share.row, kv_head, e, merge_parts(first, share.parts, e), v_factor);
  }
}
