// Values to the storage format, bit for bit as lowp/formats/convert.py.
#pragma once

#include "ptx.cuh"

// The configuration of one build. The host defines every name in capitals (build.py); none has a default.
constexpr int kHeadDim = HEAD_DIM;                                // a multiple of 16
constexpr int kKvHeads = KV_HEADS, kQueryHeads = QUERY_HEADS;     // query heads: 0 without rotation
constexpr bool kInputBf16 = INPUT_BF16;                           // q, k, v: bf16 or fp16
constexpr bool kE4m3 = KV_E4M3, kInt8 = KV_INT8;                  // the cache: e4m3, int8, or 16 bits:
constexpr bool kKvBf16 = KV_BF16;                                 //   bf16 or fp16
constexpr bool kTableFloat = TABLE_FLOAT;                         // cos and sin: fp32, else as q
constexpr bool kComputedScales = COMPUTED_SCALES;                 // computed of each row, and written
constexpr bool kChannelScales = CHANNEL_SCALES;                   // K's scales differ by channel
constexpr bool kCount = COUNT;                                    // count the values out of range

constexpr int kKvBytes = kE4m3 || kInt8 ? 1 : 2;
constexpr float kLargest = kE4m3 ? 448.f : kInt8 ? 127.f : kKvBf16 ? 3.38953138925153547590e38f : 65504.f;

// ---- x / scale
// Multiply by the rounded reciprocal and correct once, instead of a division's ten instructions. For an x of 11 bits and
// a result of 8, no case rounds otherwise than that of x / scale (NOTES.md). Both are multiplied by the power of two
// that brings the scale to [1, 2), exactly, so that the remainder stays in the range of floats.
struct Scale { float power, mantissa, reciprocal; };

DEVICE Scale make_scale(float scale) {
  const unsigned exponent = __float_as_uint(scale) >> 23 & 255u;
  const float power = __uint_as_float(exponent < 254 ? 254u - exponent << 23 : 1u << 22), mantissa = scale * power;
  return {power, mantissa, __frcp_rn(mantissa)};
}
DEVICE float divide(float x, const Scale& scale) {
  const float shifted = __fmul_rn(x, scale.power), quotient = __fmul_rn(shifted, scale.reciprocal);
  const float excess = fmaf(quotient, scale.mantissa, -shifted);  // this order keeps the sign of zero
  const float corrected = fmaf(excess, -scale.reciprocal, quotient);
  return fabsf(quotient) < 1e30f ? corrected : quotient;  // infinities and NaN have no remainder
}

// ---- to the storage format: rounded to nearest, ties to even, clamped to the finite range
DEVICE float clamp(float x) { return clamp_nan(x, kLargest); }

#if __CUDA_ARCH__ >= 890
DEVICE unsigned to_e4m3(float a, float b, float c, float d) {
  unsigned r;
  asm("{.reg .b16 low, high; cvt.rn.satfinite.e4m3x2.f32 low, %2, %1; cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};}" : "=r"(r) : "f"(a), "f"(b), "f"(c), "f"(d));
  return r;
}
#else
DEVICE unsigned to_e4m3(float x) {
  const unsigned bits = __float_as_uint(clamp(x)), magnitude = bits & 0x7fffffffu;
  // Below 2^-6 the spacing is 2^-9: that of floats from 2^14 on.
  const unsigned subnormal = __float_as_uint(__uint_as_float(magnitude) + 16384.f) - 0x46800000u;
  const unsigned normal = (magnitude - (120u << 23) + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20;
  const unsigned code = magnitude > 0x7f800000u ? 0x7fu : magnitude < 0x3c800000u ? subnormal : normal;
  return code | bits >> 24 & 0x80u;
}
DEVICE unsigned to_e4m3(float a, float b, float c, float d) {
  return to_e4m3(a) | to_e4m3(b) << 8 | to_e4m3(c) << 16 | to_e4m3(d) << 24;
}
#endif

DEVICE unsigned to_int8(float x) {  // in the lowest byte, the others undefined
  const float inside = x == x ? fminf(fmaxf(x, -kLargest), kLargest) : 0.f;
  return __float_as_uint(inside + 12582912.f);  // 1.5 * 2^23: a float's spacing is 1
}
DEVICE unsigned to_int8(float a, float b, float c, float d) {
  return __byte_perm(__byte_perm(to_int8(a), to_int8(b), 0x0040), __byte_perm(to_int8(c), to_int8(d), 0x0040), 0x5410);
}

// Four values of 8 bits.
DEVICE unsigned to_byte_4(float a, float b, float c, float d) {
  return kE4m3 ? to_e4m3(a, b, c, d) : to_int8(a, b, c, d);
}
