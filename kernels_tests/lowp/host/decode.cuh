// What the decode kernel takes from its own ptx.cuh, on a CPU, beside ptx.cuh and values.cuh here: a CTA of one warp.
#pragma once
#include <cmath>

#define __shared__
#define __align__(bytes)

struct float4 { float x, y, z, w; };
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static struct { int x, y, z; } gridDim;

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kEmptyMax = -1e30f;

// ---- arithmetic
static inline float __int_as_float(int x) { return bits_as<float>(x); }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float exp2_fast(float x) { return std::exp2(x); }
static inline float log2_fast(float x) { return std::log2(x); }
static inline float reciprocal_fast(float x) { return 1.f / x; }
static inline int round_to_int(float x) { return int(std::nearbyint(x)); }
template <bool kBf16> static inline float2 unpack_pair(unsigned x) {
  return {from_16_bits<kBf16>(x & 0xffff), from_16_bits<kBf16>(x >> 16)};
}
template <bool kBf16> static inline unsigned pack_pair(float low, float high) {
  return round_to_16_bits<kBf16>(low) | round_to_16_bits<kBf16>(high) << 16;
}

// E4M3 as a value / 2^8 in fp16, like the GPUs that do not convert it.
constexpr float kE4m3Unit = 0.00390625f;
static inline void from_e4m3(unsigned x, unsigned& low, unsigned& high) {
  const unsigned a = __byte_perm(x, 0u, 0x1404), b = __byte_perm(x, 0u, 0x3424);
  low = (a & 0x80008000u) | ((a & 0x7f007f00u) >> 1);
  high = (b & 0x80008000u) | ((b & 0x7f007f00u) >> 1);
}

// ---- the warp
static inline void __syncwarp() { exchange(0); }
static inline void __syncthreads() { exchange(0); }
static inline bool __any_sync(unsigned, bool value) { return __ballot_sync(kAllLanes, value); }

static unsigned operands[2][32][6];  // by turns, as exchanged
static inline const unsigned (*share(std::initializer_list<unsigned> words))[6] {
  auto& lanes = operands[exchanges[threadIdx.x] % 2];
  std::copy(words.begin(), words.end(), lanes[threadIdx.x]);
  exchange(0);
  return lanes;
}

// The element of A (16 rows) or B (8 columns) in the registers of all lanes, from `first` on; `each` elements a register.
static inline unsigned element(const unsigned (*lanes)[6], int first, int rows, int row, int k, int each) {
  const int in_group = 4 * each, group = k / in_group, lane = row % 8 * 4 + k % in_group / each;
  const unsigned word = lanes[lane][first + (rows == 16 ? 2 * group + row / 8 : group)];
  return word >> 32 / each * (k % each);
}

template <bool kBf16>
static inline void mma(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  const auto* lanes = share({a0, a1, a2, a3, b0, b1});
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; i++) {
    double sum = d[i];
    for (int k = 0; k < 16; k++)
      sum += double(from_16_bits<kBf16>(element(lanes, 0, 16, g + i / 2 * 8, k, 2) & 0xffff)) *
             from_16_bits<kBf16>(element(lanes, 4, 8, 2 * t + i % 2, k, 2) & 0xffff);
    d[i] = float(sum);
  }
}

template <bool kSignedB>
static inline void mma_int8(int (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  const auto* lanes = share({a0, a1, a2, a3, b0, b1});
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < 32; k++) {
      const unsigned a = element(lanes, 0, 16, g + i / 2 * 8, k, 4), b = element(lanes, 4, 8, 2 * t + i % 2, k, 4);
      d[i] += int8_t(a) * (kSignedB ? int8_t(b) : uint8_t(b));
    }
}

static inline unsigned transpose(unsigned x) {
  const auto* lanes = share({x});
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  unsigned r = 0;
  for (int i = 0; i < 2; i++) r |= (lanes[(2 * t + i) * 4 + g / 2][0] >> 16 * (g % 2) & 0xffff) << 16 * i;
  return r;
}

// ---- memory
extern "C" { alignas(1024) char shared[1 << 18]; }
static inline uint4 load_matrices(unsigned a) {
  const auto* lanes = share({a});
  unsigned words[4];
  for (int i = 0; i < 4; i++) words[i] = load<unsigned>(shared + lanes[8 * i + threadIdx.x / 4][0] + threadIdx.x % 4 * 4);
  return {words[0], words[1], words[2], words[3]};
}
static inline uint4 load_matrices_transposed(unsigned a) {
  const auto* lanes = share({a});
  unsigned words[4] = {};
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 2; j++) {
      const unsigned row = lanes[8 * i + threadIdx.x % 4 * 2 + j][0];
      words[i] |= unsigned(load<uint16_t>(shared + row + threadIdx.x / 4 * 2)) << 16 * j;
    }
  return {words[0], words[1], words[2], words[3]};
}
static inline unsigned shared_address(const void* p) { return unsigned(static_cast<const char*>(p) - shared); }
static inline float load_constant_float(const float* p) { return *p; }
static inline uint2 load_constant_8(const void* p) { return load<uint2>(p); }
static inline uint4 load_constant_16(const void* p) { return load<uint4>(p); }
static inline float4 load_fresh_16(const float* p) { return load<float4>(p); }
static inline float2 load_fresh_8(const float2* p) { return *p; }
static inline unsigned count_arrival(unsigned* count) { return (*count)++; }
static inline uint4 load_shared_16(unsigned a) { return load<uint4>(shared + a); }
static inline uint2 load_shared_8(unsigned a) { return load<uint2>(shared + a); }
static inline void store_shared_4(unsigned a, unsigned x) { std::memcpy(shared + a, &x, 4); }
static inline void copy_16(unsigned to, const void* from) { std::memcpy(shared + to, from, 16); }
static inline void copy_4(unsigned to, const void* from) { std::memcpy(shared + to, from, 4); }
static inline void copies_commit() {}
template <int kPending> static inline void copies_wait() {}
template <class T> static inline T opaque(T x) { return x; }
