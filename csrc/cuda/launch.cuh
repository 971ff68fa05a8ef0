// What every kernel here launches through, and how it reaches its dynamic shared memory.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cstdint>
#include <type_traits>

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

// Enqueues kernel<<<blocks, threads, shared_bytes, stream>>>(arguments...) and reports whether the launch was accepted.
template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, std::size_t shared_bytes,
                   cudaStream_t stream, std::type_identity_t<Parameters>... arguments) {
  if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  // Above 48 KiB a kernel must opt in, once per kernel and device; asking again costs no more than finding out.
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes));
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
