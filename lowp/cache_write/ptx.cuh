// Instructions that a CPU has not.
#pragma once

#include "../jit/ptx.cuh"

constexpr unsigned kAllLanes = 0xffffffffu;

DEVICE long long load_index(const long long* p) {
  long long r;
  asm volatile("ld.global.s64 %0, [%1];" : "=l"(r) : "l"(p) : "memory");
  return r;
}

// Predicated stores: behind a branch on the slot, the loads would wait for it (ptxas moves them there, volatile or not).
DEVICE void store_16_if(bool condition, void* p, uint4 x) {
  asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p st.global.v4.u32 [%0], {%1,%2,%3,%4};}"
               ::"l"(p), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(unsigned(condition)) : "memory");
}
DEVICE void store_8_if(bool condition, void* p, uint2 x) {
  asm volatile("{.reg .pred p; setp.ne.u32 p, %3, 0; @p st.global.v2.u32 [%0], {%1,%2};}"
               ::"l"(p), "r"(x.x), "r"(x.y), "r"(unsigned(condition)) : "memory");
}
DEVICE void store_float_if(bool condition, float* p, float x) {
  asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p st.global.f32 [%0], %1;}"
               ::"l"(p), "f"(x), "r"(unsigned(condition)) : "memory");
}

DEVICE float clamp_nan(float x, float largest) {  // NaN stays NaN
  float r;
  asm("{.reg .f32 t; min.NaN.f32 t, %1, %2; max.NaN.f32 %0, t, %3;}" : "=f"(r) : "f"(x), "f"(largest), "f"(-largest));
  return r;
}
