// Stands before FlashInfer's headers: the four calls by which FA2's host code asks the device and launches a kernel
// answer for a device with the given shared memory. Prints the kernel (its host stub's address in the program, as nm
// lists it) and the shared memory that it would get, in bytes.
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

static int shared_per_sm, shared_per_block;

static cudaError_t probe_device(int* device) {
  *device = 0;
  return cudaSuccess;
}

static cudaError_t probe_attribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute == cudaDevAttrMaxSharedMemoryPerMultiprocessor) *value = shared_per_sm;
  else if (attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin) *value = shared_per_block;
  else return cudaErrorNotSupported;
  return cudaSuccess;
}

template <typename Kernel>
static cudaError_t probe_shared(Kernel* kernel, cudaFuncAttribute, size_t bytes) {
  Dl_info program{};
  dladdr(reinterpret_cast<void*>(kernel), &program);
  std::printf("%lx %zu\n", reinterpret_cast<char*>(kernel) - static_cast<char*>(program.dli_fbase), bytes);
  return cudaSuccess;
}

template <typename... Arguments>
static cudaError_t probe_launch(Arguments&&...) {
  return cudaSuccess;
}

#define cudaGetDevice probe_device
#define cudaDeviceGetAttribute probe_attribute
#define cudaFuncSetAttribute probe_shared
#define cudaLaunchKernel probe_launch
