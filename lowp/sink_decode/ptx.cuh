// PTX instructions that CUDA C++ does not expose, beside those of all kernels.
#pragma once
#include "../jit/ptx.cuh"

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kEmptyMax = -1e30f;  // the maximum of no scores; finite, so that differences of two are not NaN

DEVICE unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

// ---- arithmetic
DEVICE float exp2_fast(float x) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
DEVICE float log2_fast(float x) { float r; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
DEVICE float reciprocal_fast(float x) { float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
DEVICE int round_to_int(float x) { int r; asm("cvt.rni.s32.f32 %0, %1;" : "=r"(r) : "f"(x)); return r; }

// Four E4M3 bytes as two pairs of fp16, times kE4m3Unit.
#if __CUDA_ARCH__ >= 890
constexpr float kE4m3Unit = 1.f;
DEVICE void from_e4m3(unsigned x, unsigned& low, unsigned& high) {
  // Unpacking the halves by mov lets ptxas read them without a copy; a shift would cost an instruction each.
  asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.rn.f16x2.e4m3x2 %0, a; cvt.rn.f16x2.e4m3x2 %1, b;}"
      : "=r"(low), "=r"(high) : "r"(x));
}
#else
// fp16 has one exponent bit more, so the same bits read as fp16 are the value / 2^8, subnormals included. NaN is 480.
constexpr float kE4m3Unit = 0.00390625f;
DEVICE void from_e4m3(unsigned x, unsigned& low, unsigned& high) {
  const unsigned a = __byte_perm(x, 0u, 0x1404), b = __byte_perm(x, 0u, 0x3424);  // each byte at the top of its half
  low = (a & 0x80008000u) | ((a & 0x7f007f00u) >> 1);
  high = (b & 0x80008000u) | ((b & 0x7f007f00u) >> 1);
}
#endif

// D += A B for A of 16 x 16, B of 16 x 8. With g = lane / 4, t = lane % 4 a lane holds
//   A: a0 (g, 2t..), a1 (g + 8, 2t..), a2 (g, 2t + 8..), a3 (g + 8, 2t + 8..)    B: b0 (2t.., g), b1 (2t + 8.., g)
//   D: d0, d1 (g, 2t..), d2, d3 (g + 8, 2t..)                                    (.. is that element and the next)
template <bool kBf16>
DEVICE void mma(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
#define MMA(TYPE)                                                                                                 \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "      \
      "{%0,%1,%2,%3};"                                                                                            \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                            \
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
  if constexpr (kBf16) MMA("bf16");
  else MMA("f16");
#undef MMA
}

// D += A B in integers: A of 16 x 32 int8, B of 32 x 8 int8 or uint8. Registers as above, four elements a register:
//   A: a0 (g, 4t..), a1 (g + 8, 4t..), a2 (g, 4t + 16..), a3 (g + 8, 4t + 16..)    B: b0 (4t.., g), b1 (4t + 16.., g)
template <bool kSignedB>
DEVICE void mma_int8(int (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
#define MMA(TYPE)                                                                                                 \
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8." TYPE ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                                                            \
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
  if constexpr (kSignedB) MMA("s8");
  else MMA("u8");
#undef MMA
}

// The transpose of an 8 x 8 matrix of 16-bit elements, one row's pair a lane.
DEVICE unsigned transpose(unsigned x) {
  unsigned r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(x));
  return r;
}

// ---- memory; loads of what no kernel writes meanwhile
DEVICE int load_int(const int* p) { int r; asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(r) : "l"(p)); return r; }
DEVICE float load_constant_float(const float* p) {
  float r;
  asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(r) : "l"(p));
  return r;
}
DEVICE uint2 load_constant_8(const void* p) {
  uint2 r;
  asm volatile("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(r.x), "=r"(r.y) : "l"(p));
  return r;
}
DEVICE uint4 load_constant_16(const void* p) {
  uint4 r;
  asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
  return r;
}
// Values that other CTAs wrote in this launch: not from L1.
DEVICE float4 load_fresh_16(const float* p) {
  float4 r;
  asm volatile("ld.relaxed.gpu.global.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(r.x), "=f"(r.y), "=f"(r.z), "=f"(r.w) : "l"(p) : "memory");
  return r;
}
DEVICE float2 load_fresh_8(const float2* p) {
  float2 r;
  asm volatile("ld.relaxed.gpu.global.v2.f32 {%0,%1}, [%2];" : "=f"(r.x), "=f"(r.y) : "l"(p) : "memory");
  return r;
}
// Counts 1; what this CTA wrote before is visible to whoever counts later, and what earlier ones wrote to this one.
DEVICE unsigned count_arrival(unsigned* count) {
  unsigned r;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(r) : "l"(count) : "memory");
  return r;
}
DEVICE uint4 load_shared_16(unsigned a) {
  uint4 r;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "r"(a));
  return r;
}
DEVICE uint2 load_shared_8(unsigned a) {
  uint2 r;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(r.x), "=r"(r.y) : "r"(a));
  return r;
}
// Four 8 x 8 matrices of 16-bit elements, matrix i from the rows of 16 bytes at the addresses in lanes 8i .. 8i + 7: of
// each, the pair 2t, 2t + 1 of row g. Transposed: the pair of rows 2t, 2t + 1 of column g.
DEVICE uint4 load_matrices(unsigned a) {
  uint4 r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "r"(a));
  return r;
}
DEVICE uint4 load_matrices_transposed(unsigned a) {
  uint4 r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "r"(a));
  return r;
}
DEVICE void store_shared_4(unsigned a, unsigned x) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(a), "r"(x) : "memory"); }

// Asynchronous copies from global to shared memory; groups complete in order.
DEVICE void copy_16(unsigned to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
DEVICE void copy_4(unsigned to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending> DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory"); }

// A value that the compiler cannot see through: keeps an address in one register instead of recomputing it.
DEVICE unsigned opaque(unsigned x) { unsigned r; asm volatile("mov.b32 %0, %1;" : "=r"(r) : "r"(x)); return r; }
DEVICE const char* opaque(const char* x) {
  const char* r;
  asm volatile("mov.b64 %0, %1;" : "=l"(r) : "l"(x));
  return r;
}

// ---- clusters (sm_90 and later)
#if __CUDA_ARCH__ >= 900
DEVICE void barrier_init(unsigned barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
DEVICE void barrier_expect(unsigned barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
DEVICE void barrier_wait(unsigned barrier) {
  asm volatile("{\n.reg .pred done;\nAGAIN: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;\n@!done bra AGAIN;\n}"
               ::"r"(barrier) : "memory");
}
DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }
DEVICE unsigned address_in(unsigned cta, unsigned address) {  // the same address in another CTA of the cluster
  unsigned r;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(address), "r"(cta));
  return r;
}
DEVICE void send(unsigned to, float4 x, unsigned barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];"
               ::"r"(to), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w), "r"(barrier) : "memory");
}
DEVICE void send(unsigned to, float2 x, unsigned barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1,%2}, [%3];"
               ::"r"(to), "f"(x.x), "f"(x.y), "r"(barrier) : "memory");
}
#endif
