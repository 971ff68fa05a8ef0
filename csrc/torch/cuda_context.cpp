// One binary serves every build of torch, those without CUDA included, so nothing here is linked that only a CUDA build
// has: those symbols are looked up on first use, in libraries that torch has loaded by then.
#include "cuda_context.h"

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/Exception.h>

#include <mutex>
#include <string>
#include <unordered_map>

namespace leakypar::cuda {
namespace {

template <typename Function>
Function* symbol(const char* library, const char* name) {
  void* handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
  STD_TORCH_CHECK(handle != nullptr, "leakypar: ", library, " is not loaded, though a CUDA tensor exists");
  void* address = dlsym(handle, name);
  STD_TORCH_CHECK(address != nullptr, "leakypar: ", library, " has no ", name);
  return reinterpret_cast<Function*>(address);
}

// torch/csrc/inductor/aoti_torch/c/shim.h and torch/csrc/stable/c/shim.h declare these for CUDA builds only.
constexpr const char* torch_cuda = "libtorch_cuda.so";
using GetCurrentStream = std::int32_t(std::int32_t device, void** stream);
using GetBlasHandle = std::int32_t(void** handle);

// The few lines of cublas_api.h that a product needs; the toolkit's headers are not a build requirement.
using BlasHandle = void*;
enum BlasOperation : int { blas_as_is = 0, blas_transposed = 1 };
constexpr int blas_default_math = 0;
constexpr int blas_compute_float32 = 68;
constexpr int blas_compute_fast_tf32 = 77;
constexpr int blas_default_algorithm = -1;
constexpr int cuda_real_float32 = 0;
using SetMathMode = int(BlasHandle, int mode);
using GemmEx64 = int(BlasHandle, int transpose_a, int transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                     const void* alpha, const void* a, int a_type, std::int64_t lda, const void* b, int b_type,
                     std::int64_t ldb, const void* beta, void* c, int c_type, std::int64_t ldc, int compute_type,
                     int algorithm);

// torch of CUDA 12 and of CUDA 13 load differently named libraries.
const char* blas_library() {
  for (const char* name : {"libcublas.so.13", "libcublas.so.12"}) {
    if (dlopen(name, RTLD_LAZY | RTLD_NOLOAD) != nullptr) return name;
  }
  STD_TORCH_CHECK(false,
                  "leakypar: neither libcublas.so.13 nor libcublas.so.12 is loaded, though a CUDA tensor exists");
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, which, device);
  STD_TORCH_CHECK(error == cudaSuccess, "leakypar: cannot read attribute ", static_cast<int>(which), " of CUDA device ",
                  device, ": ", cudaGetErrorString(error));
  return value;
}

}  // namespace

DeviceGuard::DeviceGuard(int device) : guard_(nullptr) {
  DeviceGuardHandle handle = nullptr;
  STD_TORCH_CHECK(aoti_torch_create_device_guard(device, &handle) == 0, "leakypar: cannot switch to CUDA device ",
                  device);
  guard_ = handle;
  const cudaError_t error = cudaSetDevice(device);
  STD_TORCH_CHECK(error == cudaSuccess, "leakypar: cannot switch to CUDA device ", device, ": ",
                  cudaGetErrorString(error));
}

DeviceGuard::~DeviceGuard() { aoti_torch_delete_device_guard(static_cast<DeviceGuardHandle>(guard_)); }

cudaStream_t current_stream(int device) {
  static auto* const get = symbol<GetCurrentStream>(torch_cuda, "aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  STD_TORCH_CHECK(get(device, &stream) == 0, "leakypar: torch has no current stream for CUDA device ", device);
  return static_cast<cudaStream_t>(stream);
}

const DeviceFacts& device_facts(int device) {
  static std::mutex mutex;
  static std::unordered_map<int, DeviceFacts> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  const auto fact = [&](cudaDeviceAttr which) { return std::int64_t{attribute(which, device)}; };
  // Data moves on both edges of the memory's clock.
  const std::int64_t bits_per_second =
      2 * 1000 * fact(cudaDevAttrMemoryClockRate) * fact(cudaDevAttrGlobalMemoryBusWidth);
  const DeviceFacts facts = {
      fact(cudaDevAttrMultiProcessorCount),
      fact(cudaDevAttrL2CacheSize),
      fact(cudaDevAttrMaxSharedMemoryPerBlockOptin),
      fact(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
      fact(cudaDevAttrClockRate),
      bits_per_second / 8,
      10 * fact(cudaDevAttrComputeCapabilityMajor) + fact(cudaDevAttrComputeCapabilityMinor),
  };
  return known.emplace(device, facts).first->second;
}

void product(float* out, const Operand& a, const Operand& b, std::int64_t rows, std::int64_t columns,
             std::int64_t inner, bool accumulate, bool allow_tf32) {
  static auto* const get_handle = symbol<GetBlasHandle>(torch_cuda, "torch_get_current_cuda_blas_handle");
  static auto* const set_math_mode = symbol<SetMathMode>(blas_library(), "cublasSetMathMode");
  static auto* const gemm = symbol<GemmEx64>(blas_library(), "cublasGemmEx_64");

  BlasHandle handle = nullptr;
  STD_TORCH_CHECK(get_handle(&handle) == 0, "leakypar: torch has no cuBLAS handle for the current device");
  // Torch sets the mode each time it hands the handle out, so what is left here reaches nobody else.
  int status = set_math_mode(handle, blas_default_math);
  const float one = 1.0f, kept = accumulate ? 1.0f : 0.0f;
  // cuBLAS counts by columns: a row-major matrix is its own transpose there, so out^T = b^T a^T needs no copies.
  if (status == 0) {
    status = gemm(handle, b.transposed ? blas_transposed : blas_as_is, a.transposed ? blas_transposed : blas_as_is,
                  columns, rows, inner, &one, b.data, cuda_real_float32, b.leading, a.data, cuda_real_float32,
                  a.leading, &kept, out, cuda_real_float32, columns,
                  allow_tf32 ? blas_compute_fast_tf32 : blas_compute_float32, blas_default_algorithm);
  }
  STD_TORCH_CHECK(status == 0, "leakypar: cuBLAS returned status ", status, " for a float32 product of [", rows, ", ",
                  inner, "] and [", inner, ", ", columns, "]");
}

}  // namespace leakypar::cuda
