// A warp on a CPU: stands in for a room's ptx.cuh. Lanes are fibers, which switch at exchanges.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <initializer_list>
#include <cstring>

#define DEVICE inline

using std::max;
using std::min;

constexpr unsigned kAllLanes = 0xffffffffu;

static struct { int x; } threadIdx;
static struct { int x, y, z; } blockIdx;

static ucontext_t scheduler, fibers[32];
static char stacks[32][1 << 16];
static int exchanged[2][32];  // by turns: the next exchange may begin before the last lane has read this one
static int exchanges[32];     // of each lane
static bool running[32];

// Run a function as one warp. Lanes may leave it early.
static inline void run_warp(void (*function)()) {
  static void (*body)();
  body = function;
  for (int lane = 0; lane < 32; lane++) {
    getcontext(&fibers[lane]);
    fibers[lane].uc_stack = {stacks[lane], 0, sizeof(stacks[lane])};
    fibers[lane].uc_link = &scheduler;
    running[lane] = true;
    exchanges[lane] = 0;
    makecontext(&fibers[lane], [] { body(); running[threadIdx.x] = false; }, 0);
  }
  for (bool any = true; any;) {
    any = false;
    for (int lane = 0; lane < 32; lane++) {
      if (!running[lane]) continue;
      any = true;
      threadIdx.x = lane;
      swapcontext(&scheduler, &fibers[lane]);
    }
  }
}

// Give a value to all lanes; returns those of all lanes. Every lane that is left calls it, as kAllLanes promises.
static inline const int* exchange(int value) {
  const int lane = threadIdx.x;
  int* values = exchanged[exchanges[lane]++ % 2];
  values[lane] = value;
  swapcontext(&fibers[lane], &scheduler);
  return values;
}

// Give a value of 4 bytes to all lanes; returns that of one lane.
template <class T> static inline T exchange_from(T value, int source) {
  int bits;
  std::memcpy(&bits, &value, 4);
  bits = exchange(bits)[source];
  std::memcpy(&value, &bits, 4);
  return value;
}

template <class T> static inline T __shfl_sync(unsigned, T value, int source) { return exchange_from(value, source); }
template <class T> static inline T __shfl_xor_sync(unsigned, T value, int distance) {
  return exchange_from(value, threadIdx.x ^ distance);
}
static inline int __shfl_up_sync(unsigned, int value, int delta) {
  const int* values = exchange(value);
  return values[threadIdx.x >= delta ? threadIdx.x - delta : threadIdx.x];
}
static inline unsigned __reduce_add_sync(unsigned, unsigned value) {
  const int* values = exchange(int(value));
  unsigned sum = 0;
  for (int lane = 0; lane < 32; lane++) sum += unsigned(values[lane]);
  return sum;
}
static inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  const int* values = exchange(int(value));
  return unsigned(*std::max_element(values, values + 32));
}
static inline unsigned __ballot_sync(unsigned, bool value) {
  const int* values = exchange(value);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; lane++) ballot |= unsigned(values[lane]) << lane;
  return ballot;
}
static inline int __ffs(unsigned x) { return __builtin_ffs(int(x)); }
static inline int load_int(const int* p) { return *p; }
