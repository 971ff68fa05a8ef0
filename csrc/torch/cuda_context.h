// What the operators need from the CUDA side of torch: the stream to launch on, the chip's facts, and a float32 product.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../plan/scan.h"

namespace leakypar::cuda {

// Makes a device current, for torch and for the CUDA runtime linked in here, until the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  void* guard_;
};

// The stream that torch launches on for this device, now, on this thread.
cudaStream_t current_stream(int device);

const DeviceFacts& device_facts(int device);

// A row-major matrix as it lies in memory, or its transpose.
struct Operand {
  const float* data;
  std::int64_t leading;  // elements between the starts of neighbouring rows, as it lies
  bool transposed;
};

// out [rows, columns] = a [rows, inner] b [inner, columns], or += where it accumulates, all row-major float32, by cuBLAS on torch's own handle.
// Torch's matrix product follows torch's TF32 switch for matrix products; this layer stands in for nn.RNN and follows
// the one for RNNs, so the choice is an argument here.
void product(float* out, const Operand& a, const Operand& b, std::int64_t rows, std::int64_t columns,
             std::int64_t inner, bool accumulate, bool allow_tf32);

}  // namespace leakypar::cuda
