// The kernel of sink_decode on a CPU, in CTAs of one warp.
#include "ptx.cuh"
#include "values.cuh"
#include "decode.cuh"

#include "kernel.cu"

static const Params* params;

extern "C" void run(const Params* p, int kv_heads, int batch) {
  params = p;
  gridDim = {kv_heads, 1, batch};
  for (blockIdx.z = 0; blockIdx.z < batch; blockIdx.z++)
    for (blockIdx.x = 0; blockIdx.x < kv_heads; blockIdx.x++) run_warp([] { sink_decode(*params); });
}
