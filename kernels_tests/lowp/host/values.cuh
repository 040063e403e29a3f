// Loads, stores and arithmetic of a kernel of the paged cache on a CPU, beside ptx.cuh.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct Values { float x[8]; };

template <class To, class From> static inline To bits_as(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To r;
  std::memcpy(&r, &x, sizeof(r));
  return r;
}
static inline unsigned __float_as_uint(float x) { return bits_as<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return bits_as<float>(x); }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1.f / x; }
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t(y) << 32 | x;
  unsigned r = 0;
  for (int i = 0; i < 4; i++) r |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return r;
}
template <class T> static inline void atomicAdd(T* p, unsigned x) { *p += x; }

template <class T> static inline T load(const void* p) {
  T r;
  std::memcpy(&r, p, sizeof(r));
  return r;
}
static inline uint4 load_16(const void* p) { return load<uint4>(p); }
static inline float load_float(const float* p) { return *p; }
static inline long long load_index(const long long* p) { return *p; }
static inline void store_16_if(bool condition, void* p, uint4 x) { if (condition) std::memcpy(p, &x, 16); }
static inline void store_8_if(bool condition, void* p, uint2 x) { if (condition) std::memcpy(p, &x, 8); }
static inline void store_float_if(bool condition, float* p, float x) { if (condition) *p = x; }

static inline float clamp_nan(float x, float largest) { return x > largest ? largest : x < -largest ? -largest : x; }

template <bool kBf16> static inline float from_16_bits(unsigned x) {
  return kBf16 ? __uint_as_float(x << 16) : float(bits_as<_Float16>(uint16_t(x)));
}
template <bool kBf16> static inline unsigned round_to_16_bits(float x) {
  if (!kBf16) return bits_as<uint16_t>(_Float16(x));
  const unsigned bits = __float_as_uint(x);
  return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
template <bool kBf16> static inline Values unpack(uint4 raw) {
  const unsigned words[] = {raw.x, raw.y, raw.z, raw.w};
  Values v;
  for (int i = 0; i < 8; i++) v.x[i] = from_16_bits<kBf16>(words[i / 2] >> 16 * (i % 2) & 0xffff);
  return v;
}
template <bool kBf16> static inline uint4 pack(const Values& v) {
  unsigned words[4] = {};
  for (int i = 0; i < 8; i++) words[i / 2] |= round_to_16_bits<kBf16>(v.x[i]) << 16 * (i % 2);
  return {words[0], words[1], words[2], words[3]};
}

static inline void wait_for_previous_kernel() {}
static inline void let_next_kernel_start() {}
