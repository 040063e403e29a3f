// The kernel of cache_write on a CPU, in CTAs of one warp.
#include "ptx.cuh"
#include "values.cuh"

#include "kernel.cu"

static const Params* params;

extern "C" void run(const Params* p, int ctas) {
  params = p;
  for (blockIdx.x = 0; blockIdx.x < ctas; blockIdx.x++) run_warp([] { cache_write(*params); });
}
