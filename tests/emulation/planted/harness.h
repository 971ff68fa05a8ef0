// What the sample kernels share: a list of cases that the harness runs by name, and arrays of the exact size.
//
// A case prints the bits it computed; tests/test_emulation.py runs the cases in many orders and compares. A case with a
// fault planted has a control: the same kernel without that fault.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cuda/launch.cuh"

namespace planted {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> list;
  return list;
}

struct Register {
  Register(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

// Memory that ends where the array ends, aligned as cudaMalloc aligns.
template <typename Value>
class Array {
 public:
  explicit Array(std::size_t size) : size_(size) {
    if (posix_memalign(&memory_, 256, size * sizeof(Value)) != 0) std::abort();
    std::memset(memory_, 0, size * sizeof(Value));
  }
  ~Array() { std::free(memory_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  Value* data() { return static_cast<Value*>(memory_); }
  std::size_t size() const { return size_; }
  Value& operator[](std::size_t i) { return data()[i]; }

  void print() {
    std::vector<unsigned char> bytes(size_ * sizeof(Value));
    std::memcpy(bytes.data(), memory_, bytes.size());
    for (const unsigned char byte : bytes) std::printf("%02x", byte);
  }

 private:
  void* memory_ = nullptr;
  std::size_t size_;
};

inline void expect(bool holds, const char* what, long long at = 0) {
  if (holds) return;
  std::fprintf(stderr, "expected %s (at %lld)\n", what, at);
  std::exit(1);
}

template <typename... Parameters>
void launch(void (*kernel)(Parameters...), int blocks, int threads, std::size_t shared_bytes,
            std::type_identity_t<Parameters>... arguments) {
  const cudaError_t error = leakypar::cuda::launch(kernel, blocks, threads, shared_bytes, nullptr, arguments...);
  expect(error == cudaSuccess, cudaGetErrorString(error), error);
}

}  // namespace planted
