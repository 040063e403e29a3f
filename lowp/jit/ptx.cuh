// What the kernels of the paged cache share: loads, values of 16 bits in registers, dependent launches. No toolkit header:
// NVRTC needs no include path.
#pragma once

#define DEVICE __device__ __forceinline__

// Eight values of a row.
struct Values { float x[8]; };

DEVICE uint4 load_16(const void* p) {
  uint4 r;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p) : "memory");
  return r;
}
DEVICE float load_float(const float* p) {
  float r;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(r) : "l"(p) : "memory");
  return r;
}

// ---- 16 bits
template <bool kBf16> DEVICE float2 unpack_pair(unsigned x) {
  float2 r;
  if constexpr (kBf16) {
    r.x = __uint_as_float(x << 16);
    r.y = __uint_as_float(x & 0xffff0000u);
  } else {
    asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}" : "=f"(r.x), "=f"(r.y) : "r"(x));
  }
  return r;
}
template <bool kBf16> DEVICE unsigned pack_pair(float low, float high) {
  unsigned r;
  if constexpr (kBf16) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <bool kBf16> DEVICE Values unpack(uint4 raw) {
  const float2 a = unpack_pair<kBf16>(raw.x), b = unpack_pair<kBf16>(raw.y);
  const float2 c = unpack_pair<kBf16>(raw.z), d = unpack_pair<kBf16>(raw.w);
  return {a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y};
}
template <bool kBf16> DEVICE uint4 pack(const Values& v) {
  return {pack_pair<kBf16>(v.x[0], v.x[1]), pack_pair<kBf16>(v.x[2], v.x[3]), pack_pair<kBf16>(v.x[4], v.x[5]),
          pack_pair<kBf16>(v.x[6], v.x[7])};
}

// ---- dependent launches (sm_90 and later)
DEVICE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
