// K and V of new tokens into a paged cache, in its storage format; with query heads, rotated on the way (RoPE).
//
// A row is one head's vector of one token: the query's, then K's, then V's. A thread moves 16 values of a row: two chunks
// of 8, half a row apart, where they are each other's partners in a rotation or are stored in 16 bits (neighbouring
// threads then fill whole sectors); else 16 in a line.
#include "convert.cuh"

constexpr bool kRotate = kQueryHeads > 0;
constexpr unsigned kRowThreads = kHeadDim / 16, kTokenThreads = (kQueryHeads + 2 * kKvHeads) * kRowThreads;
constexpr bool kHalves = kRotate || kKvBytes == 2;
constexpr unsigned kFirst = kHalves ? 8 : 16;                 // values from one thread's first chunk to the next thread's
constexpr int kApart = kHalves ? kHeadDim / 2 : 8;            // values from a thread's first chunk to its second
constexpr int kTableBytes = kTableFloat ? 4 : 2;
constexpr float kLargestFloat = 3.40282346638528859812e38f, kSmallestNormal = 1.17549435082228750797e-38f;

struct Params {
  const char* q;                     // [tokens, heads, head_dim] each, heads contiguous, tokens strided
  char* q_out;
  const char* k;
  const char* v;
  char* k_cache;
  char* v_cache;
  const long long* slots;            // [tokens]
  const long long* positions;        // [tokens]
  const char* cos_sin;               // [positions, head_dim]: cos, then sin
  float* k_scale;                    // null (1), one, one per head or, of K, per channel; computed: written
  float* v_scale;
  unsigned long long* saturated;     // K's count, V's
  long long q_stride, q_out_stride, k_stride, v_stride;   // bytes from token to token
  long long page_stride, head_stride, slot_stride;        // of the caches, bytes
  long long table_stride;                                 // bytes from position to position
  unsigned long long cache_slots;
  long long last_position;
  int tokens, page_shift;                                 // log2 of a page's slots
  int k_scale_head, v_scale_head;                         // floats from head to head, 0 or 1
#if COMPUTED_SCALES
  long long scale_page, scale_head, scale_slot;           // of both scales, floats
#endif
};
static_assert(sizeof(Params) == PARAMS_BYTES, "params.py's Params");

DEVICE Values load_floats(const float* p) {
  const uint4 a = load_16(p), b = load_16(p + 4);
  return {__uint_as_float(a.x), __uint_as_float(a.y), __uint_as_float(a.z), __uint_as_float(a.w),
          __uint_as_float(b.x), __uint_as_float(b.y), __uint_as_float(b.z), __uint_as_float(b.w)};
}

DEVICE Values load_table(const char* p) {
  if constexpr (kTableFloat) return load_floats(reinterpret_cast<const float*>(p));
  else return unpack<kInputBf16>(load_16(p));
}

DEVICE void rotate(Values& low, Values& high, const char* table) {
  const Values cos = load_table(table), sin = load_table(table + kHeadDim / 2 * kTableBytes);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float x = low.x[i], y = high.x[i];
    low.x[i] = fmaf(x, cos.x[i], -__fmul_rn(y, sin.x[i]));
    high.x[i] = fmaf(y, cos.x[i], __fmul_rn(x, sin.x[i]));
  }
}

DEVICE unsigned count_saturated(const Values& v) {
  constexpr float kMost = kComputedScales ? kLargestFloat : kLargest;  // a row's own scale reaches its finite values
  unsigned count = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) count += fabsf(v.x[i]) > kMost;
  return count;
}

DEVICE float finite_amax(const Values& v) {
  float amax = 0.f;
#pragma unroll
  for (int i = 0; i < 8; i++) amax = fmaxf(amax, fabsf(v.x[i]) <= kLargestFloat ? fabsf(v.x[i]) : 0.f);
  return amax;
}

// The scale of the row that kRowThreads neighbours in a warp hold: they leave the kernel together, so all are here.
DEVICE float row_scale(const Values& low, const Values& high) {
  float amax = fmaxf(finite_amax(low), finite_amax(high));
#pragma unroll
  for (unsigned distance = kRowThreads / 2; distance; distance /= 2)
    amax = fmaxf(amax, __shfl_xor_sync(kAllLanes, amax, distance));
  const float scale = fmaxf(__fdiv_rn(amax, kLargest), kSmallestNormal);
  return amax > 0.f ? scale : 1.f;
}

DEVICE Values scaled(Values v, const Scale& scale) {
#pragma unroll
  for (int i = 0; i < 8; i++) v.x[i] = divide(v.x[i], scale);
  return v;
}

DEVICE Values scaled(Values v, bool by_channel, const Values& channels, float scale) {
#pragma unroll
  for (int i = 0; i < 8; i++) v.x[i] = __fdiv_rn(v.x[i], by_channel ? channels.x[i] : scale);
  return v;
}

DEVICE uint2 to_bytes(const Values& v) {
  return {to_byte_4(v.x[0], v.x[1], v.x[2], v.x[3]), to_byte_4(v.x[4], v.x[5], v.x[6], v.x[7])};
}

DEVICE uint4 to_16_bits(Values v) {
#pragma unroll
  for (int i = 0; i < 8; i++) v.x[i] = clamp(v.x[i]);
  return pack<kKvBf16>(v);
}

extern "C" __global__ void __launch_bounds__(THREADS) cache_write(const __grid_constant__ Params p) {
  // Let the next kernel launch now: it waits for the end of this one before it reads, as this one does below.
  let_next_kernel_start();
  const unsigned thread = blockIdx.x * THREADS + threadIdx.x;
  const unsigned token = thread / kTokenThreads, row = thread % kTokenThreads / kRowThreads, part = thread % kRowThreads;
  const bool is_q = kRotate && row < kQueryHeads, is_v = row >= kQueryHeads + kKvHeads;
  const unsigned head = row - (is_v ? kQueryHeads + kKvHeads : is_q ? 0 : kQueryHeads);
  if (token >= p.tokens) return;
  const char* from = (is_q ? p.q + token * p.q_stride : is_v ? p.v + token * p.v_stride : p.k + token * p.k_stride) +
                     (head * kHeadDim + part * kFirst) * 2;
  float* scale_of = is_v ? p.v_scale : p.k_scale;
  wait_for_previous_kernel();

  // All loads that need no other are in flight at once.
  long long position = 0;
  if constexpr (kRotate) position = load_index(p.positions + token);
  const unsigned long long slot = load_index(p.slots + token);
  const uint4 raw_low = load_16(from), raw_high = load_16(from + kApart * 2);
  const bool by_channel = kChannelScales && !is_q && !is_v;
  Values low_channels, high_channels;
  if (by_channel) {
    low_channels = load_floats(p.k_scale + head * kHeadDim + part * kFirst);
    high_channels = load_floats(p.k_scale + head * kHeadDim + part * kFirst + kApart);
  }
  float scale = 1.f;
  if constexpr (kKvBytes == 1 && !kComputedScales)
    if (scale_of && !is_q && !by_channel) scale = load_float(scale_of + head * (is_v ? p.v_scale_head : p.k_scale_head));

  Values low = unpack<kInputBf16>(raw_low), high = unpack<kInputBf16>(raw_high);
  if constexpr (kRotate) {
    position = min(max(position, 0ll), p.last_position);
    if (!is_v) rotate(low, high, p.cos_sin + position * p.table_stride + part * 8 * kTableBytes);
    if (is_q) {
      char* to = p.q_out + token * p.q_out_stride + (head * kHeadDim + part * 8) * 2;
      *reinterpret_cast<uint4*>(to) = pack<kInputBf16>(low);
      *reinterpret_cast<uint4*>(to + kApart * 2) = pack<kInputBf16>(high);
      return;
    }
  }
  const bool has_slot = slot < p.cache_slots;  // -1 is past all
  if constexpr (kComputedScales) scale = row_scale(low, high);
  if constexpr (kChannelScales) {
    low = scaled(low, by_channel, low_channels, scale);
    high = scaled(high, by_channel, high_channels, scale);
  } else if constexpr (kKvBytes == 1) {
    const Scale divisor = make_scale(scale);
    low = scaled(low, divisor);
    high = scaled(high, divisor);
  }
  if constexpr (kCount)
    if (const unsigned count = count_saturated(low) + count_saturated(high); has_slot && count)
      atomicAdd(p.saturated + is_v, count);
  char* to = (is_v ? p.v_cache : p.k_cache) + (slot >> p.page_shift) * p.page_stride + head * p.head_stride +
             (slot & (1ull << p.page_shift) - 1) * p.slot_stride + part * kFirst * kKvBytes;
#if COMPUTED_SCALES
  float* scale_to = scale_of + (slot >> p.page_shift) * p.scale_page + head * p.scale_head +
                    (slot & (1ull << p.page_shift) - 1) * p.scale_slot;
  store_float_if(has_slot && part == 0, scale_to, scale);
#endif
  if constexpr (kKvBytes == 2) {
    store_16_if(has_slot, to, to_16_bits(low));
    store_16_if(has_slot, to + kApart * 2, to_16_bits(high));
  } else if constexpr (kRotate) {
    store_8_if(has_slot, to, to_bytes(low));
    store_8_if(has_slot, to + kApart, to_bytes(high));
  } else {
    const uint2 a = to_bytes(low), b = to_bytes(high);
    store_16_if(has_slot, to, {a.x, a.y, b.x, b.y});
  }
}
