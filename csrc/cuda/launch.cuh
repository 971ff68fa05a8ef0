// What every kernel here launches through, and how it reaches its dynamic shared memory.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cstdint>
#include <mutex>
#include <set>
#include <type_traits>
#include <utility>

namespace leakypar::cuda {

#ifdef __CUDACC__
// All shared memory is dynamic, so that a test harness can hand each block a buffer of exactly the size it asked for.
__device__ __forceinline__ void* shared_memory() {
  extern __shared__ __align__(16) unsigned char buffer[];
  return buffer;
}
#else
inline void* shared_memory() { return leakypar_emulation::shared_memory(); }
#endif

// Above 48 KiB of shared memory a kernel must opt in. The limit is one value per kernel and device, and other threads launch
// too: it is set once, to the device's maximum, so that nobody lowers it between another's call and launch.
inline cudaError_t opt_in_to_shared_memory(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> opted_in;
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::lock_guard lock(mutex);
  if (opted_in.contains({kernel, device})) return cudaSuccess;
  error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error == cudaSuccess) opted_in.insert({kernel, device});
  return error;
}

// Enqueues kernel<<<blocks, threads, shared_bytes, stream>>>(arguments...) and reports whether the launch was accepted.
template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, std::size_t shared_bytes,
                   cudaStream_t stream, std::type_identity_t<Parameters>... arguments) {
  if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = opt_in_to_shared_memory(reinterpret_cast<const void*>(kernel));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace leakypar::cuda
