#include "runtime_api.h"

#include <cstring>
#include <mutex>
#include <string_view>
#include <unordered_map>

#include "diagnosis.h"
#include "settings.h"

namespace leakypar_emulation {
namespace {

// The limits of an H100. A device's own would do: what matters is that there are some.
constexpr int kMaxThreads = 1024;
constexpr int kSharedBytes = 48 << 10;
constexpr int kSharedBytesOptIn = 227 << 10;
constexpr int kSharedBytesMultiprocessor = 228 << 10;

// Autograd launches from threads of its own; the scheduler's state is one per process.
std::mutex mutex;
std::unordered_map<const void*, int> raised_shared_bytes;  // by kernel

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t report(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

bool legal(const dim3& size, unsigned max_x, unsigned max_y, unsigned max_z) {
  const auto within = [](unsigned count, unsigned max) { return count >= 1 && count <= max; };
  return within(size.x, max_x) && within(size.y, max_y) && within(size.z, max_z);
}

cudaError_t validate(const cudaLaunchConfig_t& config, const void* identity) {
  if (config.numAttrs != 0) return cudaErrorNotSupported;
  const dim3& block = config.blockDim;
  if (!legal(config.gridDim, 0x7FFFFFFF, 65535, 65535) || !legal(block, 1024, 1024, 64) ||
      block.x * block.y * block.z > kMaxThreads) {
    return cudaErrorInvalidConfiguration;
  }
  const auto raised = raised_shared_bytes.find(identity);
  const int limit = raised != raised_shared_bytes.end() ? raised->second : kSharedBytes;
  return config.dynamicSmemBytes > static_cast<std::size_t>(limit) ? cudaErrorInvalidValue : cudaSuccess;
}

}  // namespace

cudaError_t launch(const cudaLaunchConfig_t* config, const void* identity, Kernel kernel) {
  if (config == nullptr || identity == nullptr) return report(cudaErrorInvalidValue);
  static thread_local bool launching = false;
  if (launching) fail("a kernel launches a kernel");
  const std::lock_guard lock(mutex);
  if (settings().refusal != cudaSuccess) return report(static_cast<cudaError_t>(settings().refusal));
  const cudaError_t error = validate(*config, identity);
  if (error != cudaSuccess) return report(error);
  launching = true;
  run_grid(config->gridDim, config->blockDim, config->dynamicSmemBytes, kernel);
  launching = false;
  return cudaSuccess;
}

}  // namespace leakypar_emulation

using namespace leakypar_emulation;

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDeviceFunction:
      return "cudaErrorInvalidDeviceFunction";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNoKernelImageForDevice:
      return "cudaErrorNoKernelImageForDevice";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDeviceFunction:
      return "invalid device function";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorNoKernelImageForDevice:
      return "no kernel image is available for execution on the device";
    case cudaErrorNotSupported:
      return "operation not supported";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetDevice(int* device) {
  if (device == nullptr) return report(cudaErrorInvalidValue);
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (value == nullptr) return report(cudaErrorInvalidValue);
  if (device != 0) return report(cudaErrorInvalidDevice);
  const std::lock_guard lock(mutex);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = kMaxThreads;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = kSharedBytes;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = 32;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = settings().multiprocessors;
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = 256 << 10;  // small, so that a test of modest size has more than one chunk
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = kSharedBytesMultiprocessor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = kSharedBytesOptIn;
      return cudaSuccess;
  }
  return report(cudaErrorInvalidValue);
}

cudaError_t cudaMemsetAsync(void* address, int byte, std::size_t bytes, cudaStream_t) {
  if (bytes == 0) return cudaSuccess;
  if (address == nullptr) return report(cudaErrorInvalidValue);
  std::memset(address, byte, bytes);
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (kernel == nullptr || attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
    return report(cudaErrorInvalidValue);
  }
  if (value < 0 || value > kSharedBytesOptIn) return report(cudaErrorInvalidValue);
  const std::lock_guard lock(mutex);
  raised_shared_bytes[kernel] = value;
  return cudaSuccess;
}

int leakypar_emulation_set_order(const char* text) {
  const auto order = text != nullptr ? Order::parse(text) : std::nullopt;
  if (!order) return -1;
  const std::lock_guard lock(mutex);
  settings().order = *order;
  return 0;
}

int leakypar_emulation_set_resident_blocks(int count) {
  if (count < 1) return -1;
  const std::lock_guard lock(mutex);
  settings().resident_blocks = count;
  return 0;
}

int leakypar_emulation_set_multiprocessors(int count) {
  if (count < 1) return -1;
  const std::lock_guard lock(mutex);
  settings().multiprocessors = count;
  return 0;
}

void leakypar_emulation_refuse_launches(int error) {
  const std::lock_guard lock(mutex);
  settings().refusal = error;
}
