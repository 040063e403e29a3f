// Phases 2 to 4, one step of one warp: scores, softmax, values. With g = lane / 4 and t = lane % 4:
//
//   scores   S^T (16 tokens x 8 columns) = K (A) Q^T (B)    a tile of keys and a tile of columns: head_dim / 16 MMAs
//            (twice that for a query of two terms)
//            K: the lane's 16 bytes (8 dims at 16 bits: twice that) of rows g and g + 8 are its A elements; which dims
//            an MMA sums over is free, so Q is loaded in the same order: 16 dims from 16 t on of each half
//            int8: in integers, no key is converted; Q is 16 bits, an MMA of each byte for 32 dims: of the keys' chunk
//            c (16 dims) the lane has dims 4t .. 4t + 3, and so of Q
//   softmax  P = exp2(c S - m): the lane has columns 2t, 2t + 1 of tokens g, g + 8
//   values   O^T (16 dims x 8 columns) += V^T (A) P^T (B)     P^T: P packed to 16 bits and transposed by movmatrix
//            V: of tokens 2t, 2t + 1, 2t + 8, 2t + 9 the lane has dims 8g .. 8g + 7 of each half; bytes of two tokens
//            are interleaved to pairs; MMA m (0-3) has dims 8g + 2m (A row g) and 8g + 2m + 1 (row g + 8)
//            int8: transposed loads give pairs of tokens; MMA m has dims 16m + 2g (row g) and 16m + 2g + 1 (row g + 8)
//
// Row x of the MMAs is the tile's token swapped(x), which spreads the reads of V over the banks; P^T has the same
// order, so that only masks and token scales see it.
#pragma once
#include "int8.cuh"

// ---- scores
DEVICE void compute_scores(Scores& s, const Query& q, unsigned k) {
#pragma unroll
  for (int j = 0; j < kTiles; j++) {
#pragma unroll
    for (int n = 0; n < kGroupTiles; n++) s[j][n][0] = s[j][n][1] = s[j][n][2] = s[j][n][3] = 0.f;
#pragma unroll
    for (int half = 0; half < kHalves; half++) {
      const unsigned block = half_at(k + j * kTileBytes, half);
      unsigned low[8], high[8];  // rows g and g + 8: 16 dims of each, in pairs
      if constexpr (kOneByte) {
        const uint4 a = load_shared_16(block), b = load_shared_16(block + kBlockBytes / 2);
        const unsigned wa[4] = {a.x, a.y, a.z, a.w}, wb[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int x = 0; x < 4; x++) {
          from_e4m3(wa[x], low[2 * x], low[2 * x + 1]);
          from_e4m3(wb[x], high[2 * x], high[2 * x + 1]);
        }
      } else {
#pragma unroll
        for (int x = 0; x < 2; x++) {
          const uint4 a = load_shared_16((block ^ (16 * x))), b = load_shared_16((block ^ (16 * x)) + kBlockBytes / 2);
          low[4 * x] = a.x; low[4 * x + 1] = a.y; low[4 * x + 2] = a.z; low[4 * x + 3] = a.w;
          high[4 * x] = b.x; high[4 * x + 1] = b.y; high[4 * x + 2] = b.z; high[4 * x + 3] = b.w;
        }
      }
#pragma unroll
      for (int x = 0; x < 4; x++)
#pragma unroll
        for (int n = 0; n < kGroupTiles; n++)
#pragma unroll
          for (int term = 0; term < kQueryTerms; term++) {
            const uint2 b = q.four_dims(term, n, half, x);
            mma<kKvBf16>(s[j][n], low[2 * x], high[2 * x], low[2 * x + 1], high[2 * x + 1], b.x, b.y);
          }
    }
  }
}

// ---- softmax
// The reference maximum is raised only when a score exceeds it by 2^8: most steps pay one vote and no shuffle, and
// exp2 of a difference still fits fp16. With token scales the weight of a token carries its value's scale:
// P = exp2(c k_scale S + log2 v_scale - m), and the sum takes it out again.
template <bool kEdge>
DEVICE void compute_softmax(State& st, Scores& s, Weights& w, const Query& q, unsigned scale, int token, int begin,
                            int end) {
  float per_value[kTiles][2];  // 1 / v_scale of tokens g, g + 8
  if constexpr (kTokenScales) {  // the scores become c k_scale S + log2 v_scale
#pragma unroll
    for (int j = 0; j < kTiles; j++) {
      const uint4 scales = load_shared_16(scale + j * 128);  // k, v of token g, then of token g + 8
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const float key = __uint_as_float(i ? scales.z : scales.x);
        const float value = fmaxf(__uint_as_float(i ? scales.w : scales.y), 0x1p-60f);  // also of NaN in a masked slot
        const float add = log2_fast(value);
        per_value[j][i] = reciprocal_fast(value);
#pragma unroll
        for (int n = 0; n < kGroupTiles; n++)
#pragma unroll
          for (int x = 0; x < 2; x++) {
            float& score = s[j][n][2 * i + x];
            score = fmaf(kChannelScales ? score : score * key, q.to_log2[n][x], add);
          }
      }
    }
  }
  if constexpr (kEdge) {
#pragma unroll
    for (int j = 0; j < kTiles; j++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int n = 0; n < kGroupTiles; n++)
#pragma unroll
          for (int x = 0; x < 2; x++) {
            const int relative = token + 16 * j + 8 * i - (kQueryTokens > 1 ? q.tokens >> (4 * n + 2 * x) & 3 : 0);
            if (relative < begin || relative >= end) s[j][n][2 * i + x] = -__int_as_float(0x7f800000);
          }
      }
  }
  float top[kGroupTiles][2], over = kEmptyMax;
#pragma unroll
  for (int n = 0; n < kGroupTiles; n++)
#pragma unroll
    for (int x = 0; x < 2; x++) {
      top[n][x] = fmaxf(s[0][n][x], s[0][n][x + 2]);
#pragma unroll
      for (int j = 1; j < kTiles; j++) top[n][x] = fmaxf(top[n][x], fmaxf(s[j][n][x], s[j][n][x + 2]));
      if constexpr (!kTokenScales) top[n][x] *= q.to_log2[n][x];
      over = fmaxf(over, top[n][x] - st.max[n][x]);
    }
  if (__any_sync(kAllLanes, over > 8.f)) {
#pragma unroll
    for (int n = 0; n < kGroupTiles; n++)
#pragma unroll
      for (int x = 0; x < 2; x++) {
        float m = top[n][x];
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) m = fmaxf(m, __shfl_xor_sync(kAllLanes, m, lanes));
        m = fmaxf(m, st.max[n][x]);
        const float shrink = exp2_fast(st.max[n][x] - m);
        st.max[n][x] = m;
        st.sum[n][x] *= shrink;
#pragma unroll
        for (int half = 0; half < kHalves; half++)
#pragma unroll
          for (int i = 0; i < 4; i++) { st.out[n][half][i][x] *= shrink; st.out[n][half][i][x + 2] *= shrink; }
      }
  }
#pragma unroll
  for (int j = 0; j < kTiles; j++)
#pragma unroll
    for (int n = 0; n < kGroupTiles; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float weight[2];
#pragma unroll
        for (int x = 0; x < 2; x++) {
          const float score = s[j][n][2 * i + x];
          weight[x] = exp2_fast(kTokenScales ? score - st.max[n][x] : fmaf(score, q.to_log2[n][x], -st.max[n][x]));
          st.sum[n][x] = kTokenScales ? fmaf(weight[x], per_value[j][i], st.sum[n][x]) : st.sum[n][x] + weight[x];
        }
        w[j][n][i] = transpose(pack_pair<kKvBf16>(weight[0], weight[1]));
      }
}

// ---- values
template <bool kEdge>
DEVICE void load_values(RawValues& v, const Reader& reader, unsigned stage, int tile_token, int begin, int end) {
#pragma unroll
  for (int j = 0; j < kTiles; j++)
#pragma unroll
    for (int half = 0; half < kHalves; half++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const unsigned address = half_at(reader.v[i & 1] + stage + j * kTileBytes, half) + (i >> 1) * (kBlockBytes / 2);
        unsigned(&words)[kOneByte ? 2 : 4] = v[j][half][i];
        if constexpr (kOneByte) {
          const uint2 x = load_shared_8(address);
          words[0] = x.x; words[1] = x.y;
        } else {
          const uint4 x = load_shared_16(address);
          words[0] = x.x; words[1] = x.y; words[2] = x.z; words[3] = x.w;
        }
        if constexpr (kEdge) {  // a masked value may be NaN, and 0 x NaN is NaN
          const int t = threadIdx.x & 3, token = tile_token + 16 * j + 8 * (i >> 1) + swapped(2 * t + (i & 1));
          if (token < begin || token >= end + kQueryTokens - 1)
#pragma unroll
            for (unsigned& word : words) word = 0u;
        }
      }
}

DEVICE void to_columns(Columns& a, const RawValues& v) {
#pragma unroll
  for (int j = 0; j < kTiles; j++)
#pragma unroll
    for (int half = 0; half < kHalves; half++)
#pragma unroll
      for (int m = 0; m < 4; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const auto& x = v[j][half][2 * i];
          const auto& y = v[j][half][2 * i + 1];
          unsigned& first = a[j][half][m][2 * i];
          unsigned& second = a[j][half][m][2 * i + 1];
          if constexpr (kOneByte) {
            from_e4m3(__byte_perm(x[m / 2], y[m / 2], m & 1 ? 0x7362 : 0x5140), first, second);
          } else {
            first = __byte_perm(x[m], y[m], 0x5410);
            second = __byte_perm(x[m], y[m], 0x7632);
          }
        }
}

// One step: the tiles in a stage (its offset in the ring), the first of which starts at `token`. If kEdge, tokens are
// masked: query token i sees [begin + i, end + i).
template <bool kEdge>
DEVICE void compute_step(State& st, const Query& q, const Reader& reader, unsigned stage, int token, int begin, int end) {
  Scores s;
  Weights w;
  RawValues v;
  Columns columns;
  if constexpr (kInt8 && !kQueryShared) add_offset(st);
  if constexpr (kInt8) compute_integer_scores(s, q, reader.k + stage);
  else compute_scores(s, q, reader.k + stage);
  // The values arrive beside the softmax; many columns have no registers for that.
  if constexpr (!kQueryShared) {
    if constexpr (kInt8) {
      load_int8_columns(columns, reader, stage);
    } else {
      load_values<kEdge>(v, reader, stage, token, begin, end);
      to_columns(columns, v);
    }
  }
  compute_softmax<kEdge>(st, s, w, q, reader.scale + stage, token + swapped((threadIdx.x & 31) >> 2), begin, end);
  if constexpr (kInt8) sum_offset(st, w);
  if constexpr (kInt8 && kQueryShared) add_offset(st);
  if constexpr (kQueryShared) {
    if constexpr (kInt8) {
      load_int8_columns(columns, reader, stage);
    } else {
      load_values<kEdge>(v, reader, stage, token, begin, end);
      to_columns(columns, v);
    }
  }
#pragma unroll
  for (int j = 0; j < kTiles; j++)
#pragma unroll
    for (int half = 0; half < kHalves; half++)
#pragma unroll
      for (int m = 0; m < 4; m++)
#pragma unroll
        for (int n = 0; n < kGroupTiles; n++)
          mma<kKvBf16>(st.out[n][half][m], columns[j][half][m][0], columns[j][half][m][1], columns[j][half][m][2],
                       columns[j][half][m][3], w[j][n][0], w[j][n][1]);
}
