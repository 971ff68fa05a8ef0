// The CUDA side of torch, as the operators ask for it, where tensors lie in the host's memory.
#include "torch/cuda_context.h"

#include <algorithm>
#include <bit>
#include <vector>

namespace leakypar::cuda {
namespace {

// A float32 as the matrix instructions take it in TF32: eleven significant bits, to nearest, ties away from zero.
float round_to_tf32(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const bool finite = (bits & 0x7F800000u) != 0x7F800000u;
  return finite ? std::bit_cast<float>((bits + 0x1000u) & 0xFFFFE000u) : value;
}

// An operand as a row-major matrix [rows, columns], rounded if asked.
std::vector<float> gather(const Operand& operand, std::int64_t rows, std::int64_t columns, bool tf32) {
  std::vector<float> matrix(static_cast<std::size_t>(rows * columns));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      const float value = operand.transposed ? operand.data[column * operand.leading + row]
                                             : operand.data[row * operand.leading + column];
      matrix[row * columns + column] = tf32 ? round_to_tf32(value) : value;
    }
  }
  return matrix;
}

int attribute(cudaDeviceAttr which) {
  int value = 0;
  cudaDeviceGetAttribute(&value, which, 0);
  return value;
}

}  // namespace

DeviceGuard::DeviceGuard(int) : guard_(nullptr) {}

DeviceGuard::~DeviceGuard() = default;

cudaStream_t current_stream(int) { return nullptr; }

const DeviceFacts& device_facts(int) {
  static thread_local DeviceFacts facts;
  facts = {attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrL2CacheSize),
           attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
           // An H100's: the emulation has no speed of its own.
           1'755'000, 3'352'000'000'000, 90};
  return facts;
}

void product(float* out, const Operand& a, const Operand& b, std::int64_t rows, std::int64_t columns,
             std::int64_t inner, bool accumulate, bool allow_tf32) {
  const std::vector<float> left = gather(a, rows, inner, allow_tf32);
  const std::vector<float> right = gather(b, inner, columns, allow_tf32);
  for (std::int64_t row = 0; row < rows; ++row) {
    float* const sums = out + row * columns;
    if (!accumulate) std::fill_n(sums, columns, 0.0f);
    for (std::int64_t i = 0; i < inner; ++i) {
      const float factor = left[row * inner + i];
      for (std::int64_t column = 0; column < columns; ++column) sums[column] += factor * right[i * columns + column];
    }
  }
}

}  // namespace leakypar::cuda
