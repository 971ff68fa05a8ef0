// What the host calls: the few functions of the CUDA runtime that launchers use.
#pragma once

#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

#include "grid.h"
#include "vectors.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorNotSupported = 801,
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

using cudaStream_t = struct CUstream_st*;

struct cudaLaunchAttribute;  // none is emulated: a launch that has any is refused

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

cudaError_t cudaGetLastError();  // and forgets it
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemsetAsync(void* address, int byte, std::size_t bytes, cudaStream_t stream = nullptr);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

namespace leakypar_emulation {

cudaError_t launch(const cudaLaunchConfig_t* config, const void* identity, Kernel kernel);

}  // namespace leakypar_emulation

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "a kernel's arguments are copied byte by byte");
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;  // converted once, copied anew for every thread
  } call{kernel, {std::forward<Arguments>(arguments)...}};
  const auto apply = [](void* argument) {
    const auto* call = static_cast<const Call*>(argument);
    std::apply(call->kernel, call->parameters);
  };
  return leakypar_emulation::launch(config, reinterpret_cast<const void*>(kernel), {apply, &call});
}

// Exported, for a test to call through ctypes.
#define LEAKYPAR_EMULATION_EXPORT extern "C" __attribute__((visibility("default")))

// Sets the order: "forward", "reverse" or "random:SEED". Returns 0, or -1 for any other text.
LEAKYPAR_EMULATION_EXPORT int leakypar_emulation_set_order(const char* text);

// Sets how many blocks are resident at once. Returns 0, or -1 for a count below one.
LEAKYPAR_EMULATION_EXPORT int leakypar_emulation_set_resident_blocks(int count);

// Sets how many multiprocessors the device claims to have. Returns 0, or -1 for a count below one.
LEAKYPAR_EMULATION_EXPORT int leakypar_emulation_set_multiprocessors(int count);

// Has every launch refused with this error, a cudaError_t, as a device does that has no code for it; 0: none.
LEAKYPAR_EMULATION_EXPORT void leakypar_emulation_refuse_launches(int error);
