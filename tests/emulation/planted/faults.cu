// Waits that cannot end, and calls that a device answers with anything at all: each is reported, and the process ends.
#include "harness.h"

namespace {

constexpr unsigned kAll = 0xFFFFFFFFu;

// Half of a warp waits for lanes that wait at the block's barrier.
__global__ void wait_for_each_other(float* out) {
  if (threadIdx.x < 16) {
    *out = __shfl_sync(kAll, 1.0f, 0);
  }
  __syncthreads();
}

// All lanes come to an operation with the same mask, but not to the same one.
__global__ void mixed_operations(unsigned* out) {
  if (threadIdx.x % 2 == 0) {
    *out = __ballot_sync(kAll, 1);
  } else {
    __syncwarp();
  }
}

__global__ void barrier_in_branches(float* out) {
  if (threadIdx.x < 32) {
    *out = 1.0f;
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void spin(volatile unsigned* flag) {
  while (*flag == 0) __nanosleep(32);
}

__global__ void outside_mask(unsigned* out) { *out = __ballot_sync(0x7FFFFFFFu, 1); }

__global__ void odd_width(float* out) { *out = __shfl_sync(kAll, 1.0f, 0, 12); }

template <typename Value, auto Kernel, int Threads>
void run() {
  planted::Array<Value> out(1);
  planted::launch(Kernel, 2, Threads, 0, out.data());
}

void run_outside_kernel() { __syncthreads(); }

const planted::Register registered[] = {
    {"wait-for-each-other", run<float, wait_for_each_other, 64>},
    {"mixed-operations", run<unsigned, mixed_operations, 32>},
    {"barrier-in-branches", run<float, barrier_in_branches, 64>},
    {"spin", run<unsigned, spin, 64>},
    {"outside-mask", run<unsigned, outside_mask, 32>},
    {"odd-width", run<float, odd_width, 32>},
    {"barrier-outside-kernel", run_outside_kernel},
};

}  // namespace
