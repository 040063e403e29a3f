// What a warp holds from step to step, and of one step: whose elements a lane has is in step.cuh.
#pragma once
#include "load.cuh"

DEVICE int swapped(int x) { return x ^ ((x >> 1) & 1); }  // 0 1 3 2 4 5 7 6

struct State {                           // of a warp, so far
  float max[kGroupTiles][2];             // columns 8 tile + 2t, 2t + 1; log2 units; the scale of the sums below
  float sum[kGroupTiles][2];             // this lane's tokens only
  float out[kGroupTiles][kHalves][4][4]; // [m]: (8g + 2m, column 2t), (.., 2t + 1), (8g + 2m + 1, 2t), (.., 2t + 1);
                                         //   int8: 16m + 2g and 16m + 2g + 1
  float offset[kGroupTiles][4];          // int8: to be added to all of out, columns 2t, 2t + 1, 2t, 2t + 1
};

struct Query {
  // B elements: column g, dims 16t .. 16t + 15 of each half; or in shared memory, [term][tile][half][4 dims][lane].
  // int8: dims 16c + 4t .. 16c + 4t + 3 of each chunk c of a half, their high bytes, then the low ones.
  unsigned b[kQueryShared ? 1 : kQueryTerms][kGroupTiles][kHalves][8];
  unsigned address;                      // this lane's first, in shared memory
  float to_log2[kGroupTiles][2];         // score to log2 units: sm_scale, k_scale, log2 e; columns 2t, 2t + 1
  unsigned tokens;                       // query tokens of the same columns: 2 bits each

  DEVICE unsigned term_address(int term, int n, int half, int x) const {
    return address + (((term * kGroupTiles + n) * kHalves + half) * 4 + x) * 256;
  }
  DEVICE uint2 four_dims(int term, int n, int half, int x) const {  // dims 16t + 4x .. 16t + 4x + 3
    if constexpr (kQueryShared) return load_shared_8(term_address(term, n, half, x));
    else return {b[term][n][half][2 * x], b[term][n][half][2 * x + 1]};
  }
};

struct Reader {                          // addresses in stage 0 of the ring
  unsigned k, v[2], scale;
  DEVICE Reader(unsigned ring, int lane) {
    const int g = lane >> 2, t = lane & 3, row = swapped(g);
    if constexpr (kInt8) {  // this lane's row of four matrices: tokens 0-7 and 8-15 of a chunk, then of the next
      const int r = swapped(lane & 7);
      k = opaque(ring + r * kRowBytes + (lane >> 3 & 1) * (kBlockBytes / 2) + ((lane >> 4) ^ swizzle(r)) * 16);
#pragma unroll
      for (int j = 0; j < 2; j++) v[j] = opaque(half_at(k + kValuesOffset, kInterleaved) ^ (32 * j));
    } else {
      k = opaque(ring + row * kRowBytes + ((kOneByte ? t : 2 * t) ^ swizzle(row)) * 16);
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int token = swapped(2 * t + j);
        const int offset = kOneByte ? ((g / 2) ^ swizzle(token)) * 16 + g % 2 * 8 : (g ^ swizzle(token)) * 16;
        v[j] = opaque(half_at(ring + kValuesOffset + token * kRowBytes + offset, kInterleaved));
      }
    }
    scale = ring + kScalesOffset + row * 16;
  }
};

using Scores = float[kTiles][kGroupTiles][4];     // (token g, column 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
using Weights = unsigned[kTiles][kGroupTiles][2]; // B elements of P^T
// The A elements of MMA m, values: dims 8g + 2m and 8g + 2m + 1 of tokens 2t, 2t + 1 (a0, a1) and 2t + 8, 2t + 9 (a2, a3);
// int8: dims 16m + 2g and 16m + 2g + 1.
using Columns = unsigned[kTiles][kHalves][4][4];
using RawValues = unsigned[kTiles][kHalves][4][kOneByte ? 2 : 4];  // tokens 2t, 2t + 1, 2t + 8, 2t + 9; dims 8g ..
