// The queries of one KV head, in the order of the MMAs' B elements (see step.cuh).
//
// A column is a query head of the group, of one query token: column c is head c % group of token c / group.
//
// Where the MMAs run in fp16, a column is first multiplied by the power of two that brings its largest element to
// [2^14, 2^15): bf16 reaches far over fp16's 65504, and small queries would be subnormal. The factor is exact, and the
// scores are divided by it.
//
// int8: so multiplied, a column is rounded to integers of 16 bits, whose bytes are two operands. Elements from 2^-7 of
// the largest on are exact in bf16; no error is over 2^-15 of the largest. A column with NaN or an infinity gives NaN.
//
// Where the MMAs run in bf16 and the query is fp16, it is the sum of two bf16, exactly: each score is two MMAs.
//
// Keys scaled per channel: sum of q_d (k_d scale_d) = sum of (q_d scale_d) k_d, so that the query takes the scales.
#pragma once
#include "step.cuh"

DEVICE int columns_of(const Params& p) { return p.group * kQueryTokens; }
DEVICE int query_token(const Params& p, int column) { return kQueryTokens > 1 ? column / p.group : 0; }

struct RawQuery {
  uint4 q[kGroupTiles][kHalves][2];  // column 8 tile + g, the lane's 16 dims of each half (step.cuh)
  uint4 k_scale[kHalves][4];         // channel scales: fp32, the same dims
};

// 8 of the lane's 16 dims of a half.
DEVICE uint4 load_dims(const char* from, int i) {
  if constexpr (kInt8) {
    const uint2 a = load_constant_8(from + 64 * i), b = load_constant_8(from + 64 * i + 32);
    return make_uint4(a.x, a.y, b.x, b.y);
  } else {
    return load_constant_16(from + 16 * i);
  }
}

DEVICE void load_query(RawQuery& raw, const Params& p, int row, int kv_head, int lane) {
  const int g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int n = 0; n < kGroupTiles; n++) {
    const int column = 8 * n + g, token = query_token(p, column), head = column - token * p.group;
    const char* from = p.q + static_cast<long long>(row) * p.q_stride + (kv_head * p.group + head) * (2 * kHeadDim) +
                       (kInt8 ? 8 : 32) * t;
    if constexpr (kQueryTokens > 1) from += static_cast<long long>(token) * p.q_token_stride;
#pragma unroll
    for (int half = 0; half < kHalves; half++)
#pragma unroll
      for (int i = 0; i < 2; i++)
        raw.q[n][half][i] = column < columns_of(p) ? load_dims(from + 128 * half, i) : make_uint4(0u, 0u, 0u, 0u);
  }
  if constexpr (kChannelScales)
#pragma unroll
    for (int half = 0; half < kHalves; half++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        raw.k_scale[half][i] = load_constant_16(p.k_scale + kv_head * kHeadDim + 64 * half + (kInt8 ? 4 * t + 16 * i : 16 * t + 4 * i));
}

DEVICE float nan_to_infinity(float x) { return x == x ? fabsf(x) : __int_as_float(0x7f800000); }

// Two integers of 16 bits.
DEVICE unsigned integer_pair(float low, float high) {
  return __byte_perm(min(round_to_int(low), 32767), min(round_to_int(high), 32767), 0x5410);
}

// The bytes of a column's integers.
DEVICE void store_integers(Query& q, int n, const float2 (&x)[kHalves][8], float factor) {
#pragma unroll
  for (int half = 0; half < kHalves; half++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 a = x[half][2 * i], b = x[half][2 * i + 1];
      const unsigned first = integer_pair(a.x * factor, a.y * factor), second = integer_pair(b.x * factor, b.y * factor);
      const unsigned high = __byte_perm(first, second, 0x7531), low = __byte_perm(first, second, 0x6420);
      if constexpr (!kQueryShared) {
        q.b[0][n][half][2 * i] = high;
        q.b[0][n][half][2 * i + 1] = low;
      } else if (threadIdx.x < 32) {  // the same for all warps
        store_shared_4(q.term_address(0, n, half, i), high);
        store_shared_4(q.term_address(0, n, half, i) + 4, low);
      }
    }
}

// to_log2: sm_scale x k_scale x log2 e; divided here by the column's power of two.
DEVICE void prepare_query(Query& q, const RawQuery& raw, const Params& p, float to_log2, int lane) {
  const int t = lane & 3;
  q.tokens = 0u;
#pragma unroll
  for (int n = 0; n < kGroupTiles; n++) {
    float factor = 1.f;
    float2 x[kHalves][8];
    float largest = 0.f;
#pragma unroll
    for (int half = 0; half < kHalves; half++)
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const uint4 words = raw.q[n][half][i / 4];
        const unsigned word = i % 4 == 0 ? words.x : i % 4 == 1 ? words.y : i % 4 == 2 ? words.z : words.w;
        x[half][i] = unpack_pair<kQueryBf16>(word);
        if constexpr (kChannelScales) {
          const uint4 scales = raw.k_scale[half][i / 2];
          x[half][i].x *= __uint_as_float(i % 2 ? scales.z : scales.x);
          x[half][i].y *= __uint_as_float(i % 2 ? scales.w : scales.y);
        }
        if constexpr (kInt8) largest = fmaxf(largest, fmaxf(nan_to_infinity(x[half][i].x), nan_to_infinity(x[half][i].y)));
        else largest = fmaxf(largest, fmaxf(fabsf(x[half][i].x), fabsf(x[half][i].y)));
      }
    if constexpr (!kKvBf16) {
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
      const int exponent = int(__float_as_uint(largest) >> 23) - 127;
      factor = __uint_as_float(unsigned(min(14 - exponent, kInt8 ? 126 : 100) + 127) << 23);
      if (kInt8 && exponent == 128) factor = __int_as_float(0x7fffffff);
    }
    if constexpr (kInt8) {
      store_integers(q, n, x, factor);
    } else {
#pragma unroll
      for (int half = 0; half < kHalves; half++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
          float2 residual = {x[half][i].x * factor, x[half][i].y * factor};
#pragma unroll
          for (int term = 0; term < kQueryTerms; term++) {
            const unsigned packed = pack_pair<kKvBf16>(residual.x, residual.y);
            if constexpr (kQueryTerms > 1) {
              const float2 rounded = unpack_pair<kKvBf16>(packed);
              residual = {residual.x - rounded.x, residual.y - rounded.y};
            }
            if constexpr (!kQueryShared) q.b[term][n][half][i] = packed;
            else if (threadIdx.x < 32)  // the same for all warps
              store_shared_4(q.term_address(term, n, half, i / 2) + i % 2 * 4, packed);
          }
        }
    }
    // Column 2t + i is column g of the lanes 8t + 4i on; the unit of converted keys cancels here.
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float scaled = to_log2 / (kE4m3 ? kE4m3Unit : 1.f);
      // Unused columns may overlap in the bit field; their results are never read.
      q.tokens |= query_token(p, 8 * n + 2 * t + i) << (4 * n + 2 * i);
      q.to_log2[n][i] = kKvBf16 ? scaled : __fdividef(scaled, __shfl_sync(kAllLanes, factor, 8 * t + 4 * i));
    }
  }
}
