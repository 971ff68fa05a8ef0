// What a launch sets up, and what it refuses.
#include <thread>

#include "harness.h"

namespace {

struct Place {
  uint3 thread, block;
  dim3 threads, blocks;
};

__global__ void record(Place* out) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = {threadIdx, blockIdx, blockDim, gridDim};
}

void run_indices() {
  const dim3 grid(3, 2, 5), block(7, 3, 2);
  const unsigned threads = 7 * 3 * 2;
  planted::Array<Place> out(3 * 2 * 5 * threads);
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  planted::expect(cudaLaunchKernelEx(&config, record, out.data()) == cudaSuccess, "a launch");
  for (unsigned i = 0; i < out.size(); ++i) {
    const Place& place = out[i];
    const unsigned thread = i % threads, rank = i / threads;
    planted::expect(place.thread.x == thread % 7 && place.thread.y == thread / 7 % 3 && place.thread.z == thread / 21,
                    "threadIdx", i);
    planted::expect(place.block.x == rank % 3 && place.block.y == rank / 3 % 2 && place.block.z == rank / 6, "blockIdx",
                    i);
    planted::expect(place.threads.x == 7 && place.threads.y == 3 && place.threads.z == 2, "blockDim", i);
    planted::expect(place.blocks.x == 3 && place.blocks.y == 2 && place.blocks.z == 5, "gridDim", i);
  }
}

// Each thread takes a number as it comes.
__global__ void count(unsigned* counter, unsigned* out) {
  out[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(counter, 1u);
}

void run_order() {
  planted::Array<unsigned> counter(1), out(3 * 40);
  planted::launch(count, 3, 40, 0, counter.data(), out.data());
  out.print();
}

__global__ void nothing() {}

__global__ void fill(unsigned char* out) {
  auto* bytes = static_cast<unsigned char*>(leakypar::cuda::shared_memory());
  bytes[threadIdx.x] = static_cast<unsigned char>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = bytes[blockDim.x - 1 - threadIdx.x];
}

cudaError_t launched(dim3 grid, dim3 block, std::size_t shared_bytes, void (*kernel)() = nothing) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel);
  planted::expect(cudaGetLastError() == error, "the last error to be that of the launch");
  planted::expect(cudaGetLastError() == cudaSuccess, "the last error to be forgotten once asked for");
  return error;
}

void run_limits() {
  using planted::expect;
  constexpr std::size_t kib = 1024;
  expect(launched(1, 1, 0) == cudaSuccess, "one thread");
  expect(launched(1, 1024, 48 * kib) == cudaSuccess, "1024 threads and 48 KiB");
  expect(launched(0, 1, 0) == cudaErrorInvalidConfiguration, "no empty grid");
  expect(launched(1, 0, 0) == cudaErrorInvalidConfiguration, "no empty block");
  expect(launched(1, 1025, 0) == cudaErrorInvalidConfiguration, "no 1025 threads");
  expect(launched(1, dim3(32, 33, 1), 0) == cudaErrorInvalidConfiguration, "no 32 * 33 threads");
  expect(launched(1, dim3(1, 1, 65), 0) == cudaErrorInvalidConfiguration, "no 65 layers of threads");
  expect(launched(dim3(0x80000000u), 1, 0) == cudaErrorInvalidConfiguration, "no 2^31 blocks");
  expect(launched(dim3(1, 65536), 1, 0) == cudaErrorInvalidConfiguration, "no 65536 rows of blocks");
  expect(launched(dim3(1, 1, 65536), 1, 0) == cudaErrorInvalidConfiguration, "no 65536 layers of blocks");
  expect(launched(1, 1, 48 * kib + 1) == cudaErrorInvalidValue, "no more than 48 KiB unasked");

  const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  expect(cudaFuncSetAttribute(nothing, attribute, 227 * kib + 1) == cudaErrorInvalidValue, "no more than 227 KiB");
  expect(cudaGetLastError() == cudaErrorInvalidValue, "that error");
  expect(cudaFuncSetAttribute(nothing, attribute, 227 * kib) == cudaSuccess, "227 KiB");
  expect(launched(1, 1, 227 * kib) == cudaSuccess, "227 KiB");
  expect(launched(1, 1, 227 * kib + 1) == cudaErrorInvalidValue, "no more than 227 KiB");

  int value = 0;
  expect(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess, "an attribute");
  expect(value == 227 * kib, "227 KiB");
  expect(cudaDeviceGetAttribute(&value, cudaDevAttrWarpSize, 1) == cudaErrorInvalidDevice, "one device only");
  expect(leakypar_emulation_set_multiprocessors(0) == -1, "no device without multiprocessors");
  expect(leakypar_emulation_set_multiprocessors(7) == 0, "seven multiprocessors");
  expect(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0) == cudaSuccess && value == 7, "seven");

  expect(leakypar_emulation_set_order("sideways") == -1, "no order of that name");
  expect(leakypar_emulation_set_order("random:") == -1, "no random order without a seed");
  expect(leakypar_emulation_set_order("random:1x") == -1, "no seed but a number");
  expect(leakypar_emulation_set_order(nullptr) == -1, "no order without a name");
  expect(leakypar_emulation_set_order("random:18446744073709551615") == 0, "the largest seed");
  expect(leakypar_emulation_set_resident_blocks(0) == -1, "no chip without room for a block");
}

// Launches from several threads at once, as autograd may.
void run_threads() {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([] {
      for (int repeat = 0; repeat < 50; ++repeat) {
        planted::Array<unsigned char> out(96);
        planted::launch(fill, 2, 96, 96, out.data());
        for (int i = 0; i < 96; ++i) planted::expect(out[i] == 95 - i, "the mirrored byte", i);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// A launch of little shared memory leaves the kernel's limit where another thread's large one needs it.
void run_shared_limits() {
  constexpr std::size_t kib = 1024;
  cudaGetLastError();  // forgets those of the cases before
  planted::launch(nothing, 1, 1, 200 * kib);
  planted::launch(nothing, 1, 1, 60 * kib);
  planted::expect(launched(1, 1, 200 * kib) == cudaSuccess, "a limit that no smaller launch lowers");
  std::vector<std::thread> threads;
  for (const std::size_t size : {60 * kib, 200 * kib}) {
    threads.emplace_back([size] {
      for (int repeat = 0; repeat < 2000; ++repeat) planted::launch(nothing, 1, 1, size);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

const planted::Register registered[] = {
    {"indices", run_indices},
    {"order", run_order},
    {"limits", run_limits},
    {"threads", run_threads},
    {"shared-limits", run_shared_limits},
};

}  // namespace
