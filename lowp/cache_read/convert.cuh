// Values from the storage format, bit for bit as lowp/formats/convert.py.
#pragma once

#include "../jit/ptx.cuh"

// The configuration of one build. The host defines every name in capitals (build.py); none has a default.
constexpr int kHeadDim = HEAD_DIM, kKvHeads = KV_HEADS;           // head_dim: a multiple of 32
constexpr bool kE4m3 = KV_E4M3, kInt8 = KV_INT8;                  // the cache: e4m3, int8, or 16 bits:
constexpr bool kKvBf16 = KV_BF16;                                 //   bf16 or fp16
constexpr bool kOutBf16 = OUT_BF16;                               // the outputs: bf16 or fp16
constexpr bool kTokenScales = TOKEN_SCALES;                       // K's or V's scales differ by token
constexpr bool kChannelScales = CHANNEL_SCALES;                   // K's scales differ by channel
constexpr int kRows = ROWS;                                       // rows of which a thread moves a part

constexpr int kKvBytes = kE4m3 || kInt8 ? 1 : 2;

#if __CUDA_ARCH__ >= 890
DEVICE void from_e4m3(unsigned raw, float* x) {
  unsigned low, high;
  asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.rn.f16x2.e4m3x2 %0, a; cvt.rn.f16x2.e4m3x2 %1, b;}"
      : "=r"(low), "=r"(high) : "r"(raw));
  const float2 a = unpack_pair<false>(low), b = unpack_pair<false>(high);
  x[0] = a.x, x[1] = a.y, x[2] = b.x, x[3] = b.y;
}
#else
DEVICE void from_e4m3(unsigned raw, float* x) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    // fp32 has four exponent bits more: the same bits read as fp32 are the value / 2^120, subnormals included.
    const unsigned magnitude = raw >> 8 * i & 0x7fu, sign = raw << (24 - 8 * i) & 0x80000000u;
    const float scaled = __fmul_rn(__uint_as_float(sign | magnitude << 20), 1.329227995784916e36f);
    x[i] = magnitude == 0x7fu ? __uint_as_float(0x7fffffffu) : scaled;
  }
}
#endif

DEVICE void from_int8(unsigned raw, float* x) {
  const unsigned turned = raw ^ 0x80808080u;  // the value + 128, in the last bits of 2^23
#pragma unroll
  for (int i = 0; i < 4; i++) x[i] = __uint_as_float(__byte_perm(turned, 0x4b000000u, 0x7440 + i)) - 8388736.f;
}

// Eight values of 8 bits.
DEVICE Values from_bytes(uint2 raw) {
  Values v;
  if constexpr (kE4m3) from_e4m3(raw.x, v.x), from_e4m3(raw.y, v.x + 4);
  else from_int8(raw.x, v.x), from_int8(raw.y, v.x + 4);
  return v;
}
