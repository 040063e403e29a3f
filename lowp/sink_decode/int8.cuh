// Scores and values of an int8 cache (step.cuh): keys are not converted, values by bytes alone.
#pragma once
#include "state.cuh"

// ---- scores: exact, since |score| < 2^15 x 2^7 x 128 dims = 2^29
DEVICE void compute_integer_scores(Scores& s, const Query& q, unsigned k) {
#pragma unroll
  for (int j = 0; j < kTiles; j++) {
    int high[kGroupTiles][4] = {}, low[kGroupTiles][4] = {};  // by bytes of the query
#pragma unroll
    for (int half = 0; half < kHalves; half++)
#pragma unroll
      for (int x = 0; x < 2; x++) {
        const uint4 a = load_matrices((half_at(k, half) ^ (32 * x)) + j * kTileBytes);  // 32 dims
#pragma unroll
        for (int n = 0; n < kGroupTiles; n++) {
          const uint2 first = q.four_dims(0, n, half, 2 * x), second = q.four_dims(0, n, half, 2 * x + 1);
          mma_int8<true>(high[n], a.x, a.y, a.z, a.w, first.x, second.x);
          mma_int8<false>(low[n], a.x, a.y, a.z, a.w, first.y, second.y);
        }
      }
#pragma unroll
    for (int n = 0; n < kGroupTiles; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) s[j][n][i] = float(256 * high[n][i] + low[n][i]);
  }
}

// ---- values: a byte whose sign bit is turned is the value + 128; as an fp16, a subnormal, (value + 128) int8_unit().
// A function: NVRTC lists a constant of the file in every build, of other formats too.
DEVICE float int8_unit() { return 0x1p-24f; }

DEVICE void load_int8_columns(Columns& a, const Reader& reader, unsigned stage) {
#pragma unroll
  for (int j = 0; j < kTiles; j++)
#pragma unroll
    for (int half = 0; half < kHalves; half++)
#pragma unroll
      for (int x = 0; x < 2; x++) {
        const uint4 words = load_matrices_transposed(half_at(reader.v[x] + stage, half) + j * kTileBytes);
        const unsigned pairs[4] = {words.x, words.y, words.z, words.w};  // dims 2g, 2g + 1 of two tokens
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const unsigned turned = pairs[i] ^ 0x80808080u;
          unsigned* to = &a[j][half][2 * x + i / 2][2 * (i % 2)];
          to[0] = __byte_perm(turned, 0u, 0x4240);
          to[1] = __byte_perm(turned, 0u, 0x4341);
        }
      }
}

// An MMA sums the weights x -128 int8_unit(). The next step adds that to the output, when it has long arrived; many
// columns have no registers to keep it, and add it in the same step.
DEVICE void sum_offset(State& st, const Weights& w) {
  constexpr unsigned kPair = 0x80808080u;  // -128 int8_unit(), twice
#pragma unroll
  for (int n = 0; n < kGroupTiles; n++) {
#pragma unroll
    for (float& offset : st.offset[n]) offset = 0.f;
#pragma unroll
    for (int j = 0; j < kTiles; j++)
      mma<false>(st.offset[n], kPair, kPair, kPair, kPair, w[j][n][0], w[j][n][1]);
  }
}
DEVICE void add_offset(State& st) {
#pragma unroll
  for (int n = 0; n < kGroupTiles; n++)
#pragma unroll
    for (int half = 0; half < kHalves; half++)
#pragma unroll
      for (int m = 0; m < 4; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) st.out[n][half][m][i] += st.offset[n][i];
}
