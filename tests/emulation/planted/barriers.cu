// Kernels with a barrier, and the same with the barrier missing: the bits then depend on the order of threads.
#include "harness.h"

namespace {

using leakypar::cuda::shared_memory;

constexpr int kThreads = 96, kBlocks = 6;

float value_of(int i) { return 1.0f / static_cast<float>(i + 1); }

// out[i] = the value of the next thread of the block
template <bool Barrier>
__global__ void exchange(float* out, int threads) {
  auto* values = static_cast<float*>(shared_memory());  // [threads]
  const int i = static_cast<int>(threadIdx.x);
  values[i] = 1.0f / static_cast<float>(blockIdx.x * threads + i + 1);
  if constexpr (Barrier) __syncthreads();
  out[blockIdx.x * threads + i] = values[(i + 1) % threads];
}

// The same inside a warp.
template <bool Barrier>
__global__ void exchange_in_warp(float* out) {
  auto* values = static_cast<float*>(shared_memory());  // [warpSize]
  const int i = static_cast<int>(threadIdx.x);
  values[i] = 1.0f / static_cast<float>(i + 1);
  if constexpr (Barrier) __syncwarp();
  out[i] = values[(i + 1) % warpSize];
}

// out[block] = the sum over the block, by halves
template <bool Barrier>
__global__ void reduce(float* out, int threads) {
  auto* sums = static_cast<float*>(shared_memory());  // [threads]
  const int i = static_cast<int>(threadIdx.x);
  sums[i] = 1.0f / static_cast<float>(blockIdx.x * threads + i + 1);
  __syncthreads();
  for (int half = threads / 2; half > 0; half /= 2) {
    if (i < half) sums[i] += sums[i + half];
    if constexpr (Barrier) __syncthreads();
  }
  if (i == 0) out[blockIdx.x] = sums[0];
}

// A buffer used twice: the second barrier keeps a fast warp from writing what a slow one has yet to read.
template <bool Barrier>
__global__ void rotate(float* out, int threads, int rounds) {
  auto* values = static_cast<float*>(shared_memory());  // [threads]
  const int i = static_cast<int>(threadIdx.x);
  float value = 1.0f / static_cast<float>(i + 1);
  for (int round = 0; round < rounds; ++round) {
    values[i] = value;
    __syncthreads();
    value = values[(i + 1) % threads];
    if constexpr (Barrier) __syncthreads();
  }
  out[i] = value;
}

template <bool Barrier>
void run_exchange() {
  planted::Array<float> out(kBlocks * kThreads);
  planted::launch(exchange<Barrier>, kBlocks, kThreads, kThreads * sizeof(float), out.data(), kThreads);
  out.print();
  if (!Barrier) return;
  for (int i = 0; i < kBlocks * kThreads; ++i) {
    const int next = i / kThreads * kThreads + (i + 1) % kThreads;
    planted::expect(out[i] == value_of(next), "the value of the next thread", i);
  }
}

template <bool Barrier>
void run_exchange_in_warp() {
  planted::Array<float> out(warpSize);
  planted::launch(exchange_in_warp<Barrier>, 1, warpSize, warpSize * sizeof(float), out.data());
  out.print();
}

template <bool Barrier>
void run_reduce() {
  constexpr int threads = 256;
  planted::Array<float> out(kBlocks);
  planted::launch(reduce<Barrier>, kBlocks, threads, threads * sizeof(float), out.data(), threads);
  out.print();
}

template <bool Barrier>
void run_rotate() {
  constexpr int rounds = 5;
  planted::Array<float> out(kThreads);
  planted::launch(rotate<Barrier>, 1, kThreads, kThreads * sizeof(float), out.data(), kThreads, rounds);
  out.print();
  if (!Barrier) return;
  for (int i = 0; i < kThreads; ++i) {
    planted::expect(out[i] == value_of((i + rounds) % kThreads), "the value of the thread `rounds` further", i);
  }
}

const planted::Register registered[] = {
    {"exchange", run_exchange<true>},
    {"exchange-without-barrier", run_exchange<false>},
    {"exchange-in-warp", run_exchange_in_warp<true>},
    {"exchange-in-warp-without-barrier", run_exchange_in_warp<false>},
    {"reduce", run_reduce<true>},
    {"reduce-without-barrier", run_reduce<false>},
    {"rotate", run_rotate<true>},
    {"rotate-without-barrier", run_rotate<false>},
};

}  // namespace
