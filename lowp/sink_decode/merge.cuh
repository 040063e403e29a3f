// Phase 5, merge: warps to CTA through shared memory, CTAs to row through the cluster or device memory, then the sink.
//
// A partial is (o, max, sum) of a set of tokens: o = sum of 2^(s - max) v, sum = sum of 2^(s - max). Two merge as
//   m = max(m1, m2),  o = 2^(m1 - m) o1 + 2^(m2 - m) o2,  likewise the sums.
// A thread merges 4 dims of one column: element e = column * head_dim + dim. All merges run in the
// order of warps and of splits, whichever CTA is last: the output is the same bits every time.
//
// Shared memory:  | rings; then each warp's o in its own: [columns, head_dim + 4] | max, sum [columns, warps] | sinks | query |
//                 cluster: | o of each split, this CTA's slice | max, sum [splits, columns] | barrier |  planned: | flag |
#pragma once
#include "query.cuh"

constexpr int kOutStride = kHeadDim + 4;                    // floats; the 4 spread columns over the banks
constexpr int kPartialFloats = kColumns * kHeadDim + 2 * kColumns;  // in device memory: o, then (max, sum) of each column
constexpr int kMaxSumOffset = kWarps * kRingBytes;
constexpr int kSinksOffset = kMaxSumOffset + kColumns * kWarps * 8;
constexpr int kQueryOffset = kSinksOffset + kColumns * 4;
constexpr int kReceivedOffset = kQueryOffset + kQueryBytes;
constexpr int kSliceFloats = (kColumns * kHeadDim / 4 + kRanks - 1) / kRanks * 4;
constexpr int kReceivedMaxSumOffset = kReceivedOffset + kRanks * kSliceFloats * 4;
constexpr int kBarrierOffset = kReceivedMaxSumOffset + kRanks * kColumns * 8;
constexpr int kFlagOffset = kReceivedOffset;
constexpr int kSharedBytes = kCluster > 1 ? kBarrierOffset + 8 : kCluster == 1 ? kReceivedOffset : kFlagOffset + 4;
static_assert(kSharedBytes == SHARED_BYTES, "heuristic.py computes the same");
static_assert(kThreads >= kColumns, "a thread copies a column's sink");
static_assert(kRingBytes >= kColumns * kOutStride * 4, "a warp's output must fit its ring");

struct Partial {
  float4 o;
  float max, sum;
};

// fetch(i) gives the i-th of n partials; up to kAhead are fetched before the first is used.
template <int kAhead, class Fetch> DEVICE Partial merge(int n, Fetch fetch) {
  Partial merged{make_float4(0.f, 0.f, 0.f, 0.f), kEmptyMax, 0.f};
#pragma unroll 1
  for (int base = 0; base < n; base += kAhead) {
    Partial fetched[kAhead];
    float top = merged.max;
#pragma unroll
    for (int i = 0; i < kAhead; i++) {
      fetched[i] = fetch(min(base + i, n - 1));
      top = fmaxf(top, fetched[i].max);
    }
    const float shrink = exp2_fast(merged.max - top);
    merged = {make_float4(merged.o.x * shrink, merged.o.y * shrink, merged.o.z * shrink, merged.o.w * shrink), top,
              merged.sum * shrink};
#pragma unroll
    for (int i = 0; i < kAhead; i++) {
      const float weight = base + i < n ? exp2_fast(fetched[i].max - top) : 0.f;
      merged.o.x += weight * fetched[i].o.x;
      merged.o.y += weight * fetched[i].o.y;
      merged.o.z += weight * fetched[i].o.z;
      merged.o.w += weight * fetched[i].o.w;
      merged.sum += weight * fetched[i].sum;
    }
  }
  return merged;
}

// ---- a warp's state to shared memory
DEVICE void store_state(State& st, char* shared, int warp, int lane) {
  const int g = lane >> 2, t = lane & 3;
  float* o = reinterpret_cast<float*>(shared + warp * kRingBytes);
  float2* max_sum = reinterpret_cast<float2*>(shared + kMaxSumOffset);
  __syncwarp();  // every lane has read its last step
  if constexpr (kInt8 && !kQueryShared) add_offset(st);
#pragma unroll
  for (int n = 0; n < kGroupTiles; n++)
#pragma unroll
    for (int x = 0; x < 2; x++) {
      const int column = 8 * n + 2 * t + x;
      float sum = st.sum[n][x];
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
      if (g == 0) max_sum[column * kWarps + warp] = make_float2(st.max[n][x], sum);
#pragma unroll
      for (int half = 0; half < kHalves; half++) {
        const auto& m = st.out[n][half];
        if constexpr (kInt8) {
          float* to = o + column * kOutStride + 64 * half + 2 * g;
#pragma unroll
          for (int i = 0; i < 4; i++) *reinterpret_cast<float2*>(to + 16 * i) = make_float2(m[i][x], m[i][x + 2]);
        } else {
          float4* to = reinterpret_cast<float4*>(o + column * kOutStride + 64 * half + 8 * g);
          to[0] = make_float4(m[0][x], m[0][x + 2], m[1][x], m[1][x + 2]);
          to[1] = make_float4(m[2][x], m[2][x + 2], m[3][x], m[3][x + 2]);
        }
      }
    }
}

DEVICE Partial merge_warps(const char* shared, int element) {
  const int column = element / kHeadDim, dim = element % kHeadDim;
  const float2* max_sum = reinterpret_cast<const float2*>(shared + kMaxSumOffset) + column * kWarps;
  return merge<kWarps>(kWarps, [&](int warp) {
    const float* o = reinterpret_cast<const float*>(shared + warp * kRingBytes) + column * kOutStride + dim;
    return Partial{*reinterpret_cast<const float4*>(o), max_sum[warp].x, max_sum[warp].y};
  });
}

// ---- the row's partial to the output: the sink joins the denominator
DEVICE void finish(const Params& p, const char* shared, int row, int kv_head, int element, const Partial& x, float v_scale) {
  const int column = element / kHeadDim;
  const float sink = reinterpret_cast<const float*>(shared + kSinksOffset)[column] * kLog2E;
  const float top = fmaxf(x.max, sink), shrink = exp2_fast(x.max - top);
  const float sum = x.sum * shrink + exp2_fast(sink - top);
  const float factor = sum != 0.f ? __fdividef(shrink * v_scale, sum) : 0.f;  // a sink of NaN or +inf makes sum NaN
  // Column to row of the output: a query token's heads of all KV heads come before the next token's.
  const int token = query_token(p, column), row_token = row * kQueryTokens + token;
  const long long out_row = static_cast<long long>(row_token) * gridDim.x * p.group + (kv_head - token) * p.group;
  const uint2 packed = {pack_pair<kQueryBf16>(x.o.x * factor, x.o.y * factor), pack_pair<kQueryBf16>(x.o.z * factor, x.o.w * factor)};
  *reinterpret_cast<uint2*>(p.out + (out_row * kHeadDim + element) * 2) = packed;
  if (p.lse && element % kHeadDim == 0) p.lse[out_row + column] = kLn2 * (top + log2_fast(sum));
}

#if __CUDA_ARCH__ >= 900
// ---- CTAs of a cluster: CTA r finishes the r-th slice of the elements; partials arrive by st.async on its barrier.
// Thread 0 of every CTA, before the cluster meets: how many bytes will come.
DEVICE void expect_partials(const Params& p, unsigned barrier, int rank) {
  const int begin = rank * kSliceFloats, end = min(begin + kSliceFloats, columns_of(p) * kHeadDim);
  const int columns = end > begin ? (end - 1) / kHeadDim - begin / kHeadDim + 1 : 0;
  barrier_init(barrier);
  barrier_expect(barrier, kRanks * (max(end - begin, 0) * 4 + columns * 8));
}

DEVICE void send_partial(char* shared, int rank, int element, const Partial& x) {
  const int owner = element / kSliceFloats, slice_element = element % kSliceFloats, column = element / kHeadDim;
  const unsigned barrier = address_in(owner, shared_address(shared + kBarrierOffset));
  send(address_in(owner, shared_address(shared + kReceivedOffset) + (rank * kSliceFloats + slice_element) * 4), x.o, barrier);
  if (slice_element == 0 || element % kHeadDim == 0)
    send(address_in(owner, shared_address(shared + kReceivedMaxSumOffset) + (rank * kColumns + column) * 8),
         make_float2(x.max, x.sum), barrier);
}

DEVICE Partial merge_cluster(const char* shared, int element) {
  const int slice_element = element % kSliceFloats, column = element / kHeadDim;
  const float* o = reinterpret_cast<const float*>(shared + kReceivedOffset) + slice_element;
  const float2* max_sum = reinterpret_cast<const float2*>(shared + kReceivedMaxSumOffset) + column;
  return merge<kRanks>(kRanks, [&](int split) {
    const float2 column_max_sum = max_sum[split * kColumns];
    return Partial{*reinterpret_cast<const float4*>(o + split * kSliceFloats), column_max_sum.x, column_max_sum.y};
  });
}
#endif

// ---- planned splits: partials through device memory; the CTA that arrives last merges them.
// A quota has two places: for a row that began in an earlier quota, and for one that begins in it and goes on.
DEVICE float* partial_address(const Params& p, int kv_head, int first_quota, int index) {
  const int place = 2 * (first_quota + index) + (index == 0);
  return p.partials + (static_cast<long long>(kv_head) * 2 * p.splits + place) * kPartialFloats;
}

DEVICE void store_partial(float* to, int element, const Partial& x) {
  *reinterpret_cast<float4*>(to + element) = x.o;
  if (element % kHeadDim == 0)
    reinterpret_cast<float2*>(to + kColumns * kHeadDim)[element / kHeadDim] = make_float2(x.max, x.sum);
}

DEVICE Partial merge_splits(const Params& p, int kv_head, int first_quota, int splits, int element) {
  return merge<12>(splits, [&](int split) {
    const float* from = partial_address(p, kv_head, first_quota, split);
    const float2 column_max_sum = load_fresh_8(reinterpret_cast<const float2*>(from + kColumns * kHeadDim) + element / kHeadDim);
    return Partial{load_fresh_16(from + element), column_max_sum.x, column_max_sum.y};
  });
}

// True in all threads of the CTA whose split of the row arrives last. It resets the count for the next launch.
DEVICE bool is_last(unsigned* arrived, int splits, unsigned* flag) {
  __syncthreads();  // this CTA's partial is written
  if (threadIdx.x == 0) {
    *flag = count_arrival(arrived);
    if (*flag == unsigned(splits - 1)) *arrived = 0u;
  }
  __syncthreads();
  return *flag == unsigned(splits - 1);
}

// ---- all of it, after store_state and a barrier. A thread merges 4 elements of the columns' output, or a multiple of 4.
DEVICE void merge_split(const Params& p, char* shared, const Split& split, int kv_head, float v_factor) {
  const int elements = columns_of(p) * kHeadDim;
  if (kCluster == 1 || (kCluster == 0 && split.count == 1)) {
    for (int e = threadIdx.x * 4; e < elements; e += kThreads * 4)
      finish(p, shared, split.row, kv_head, e, merge_warps(shared, e), v_factor);
    return;
  }
#if __CUDA_ARCH__ >= 900
  if constexpr (kCluster > 1) {
    cluster_wait();  // all barriers of the cluster are ready
    for (int e = threadIdx.x * 4; e < elements; e += kThreads * 4) send_partial(shared, blockIdx.y, e, merge_warps(shared, e));
    const int begin = blockIdx.y * kSliceFloats, end = min(begin + kSliceFloats, elements);
    if (begin + int(threadIdx.x) * 4 < end) barrier_wait(shared_address(shared + kBarrierOffset));
    for (int e = begin + threadIdx.x * 4; e < end; e += kThreads * 4)
      finish(p, shared, split.row, kv_head, e, merge_cluster(shared, e), v_factor);
  }
#endif
  if constexpr (kCluster == 0) {
    const int first_quota = p.splits - 1 - int(blockIdx.y) - split.index;
    float* partial = partial_address(p, kv_head, first_quota, split.index);
    for (int e = threadIdx.x * 4; e < elements; e += kThreads * 4) store_partial(partial, e, merge_warps(shared, e));
    unsigned* flag = reinterpret_cast<unsigned*>(shared + kFlagOffset);
    if (!is_last(p.arrived + split.row * gridDim.x + kv_head, split.count, flag)) return;
    for (int e = threadIdx.x * 4; e < elements; e += kThreads * 4)
      finish(p, shared, split.row, kv_head, e, merge_splits(p, kv_head, first_quota, split.count, e), v_factor);
  }
}
