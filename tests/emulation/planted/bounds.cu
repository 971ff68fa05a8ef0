// Kernels that stay inside their memory, and the same one element or one byte off: AddressSanitizer and UBSan stop them.
#include "harness.h"

namespace {

using leakypar::cuda::shared_memory;

constexpr int kThreads = 64;

template <int Excess>
__global__ void copy_device(float* out, const float* in) {
  const int i = static_cast<int>(threadIdx.x);
  out[i] = in[i + Excess];
}

template <int Excess>
__global__ void copy_to_device(float* out, const float* in) {
  const int i = static_cast<int>(threadIdx.x);
  out[i + Excess] = in[i];
}

template <int Excess>
__global__ void copy_shared(float* out) {
  auto* values = static_cast<float*>(shared_memory());  // [kThreads]
  const int i = static_cast<int>(threadIdx.x);
  values[i] = static_cast<float>(i);
  __syncthreads();
  out[i] = values[i + Excess];
}

// Reads what no thread has written.
__global__ void read_unwritten(float* out) { out[threadIdx.x] = static_cast<float*>(shared_memory())[threadIdx.x]; }

// Four floats an access, Offset floats into arrays of 4 * kThreads + Offset.
template <int Offset>
__global__ void copy_vectors(float* out, const float* in) {
  const auto* from = reinterpret_cast<const float4*>(in + Offset);
  auto* to = reinterpret_cast<float4*>(out + Offset);
  to[threadIdx.x] = from[threadIdx.x];
}

template <int Excess>
void run_copy_device() {
  planted::Array<float> out(kThreads), in(kThreads);
  planted::launch(copy_device<Excess>, 1, kThreads, 0, out.data(), in.data());
  out.print();
}

template <int Excess>
void run_copy_to_device() {
  planted::Array<float> out(kThreads), in(kThreads);
  planted::launch(copy_to_device<Excess>, 1, kThreads, 0, out.data(), in.data());
  out.print();
}

template <int Excess>
void run_copy_shared() {
  planted::Array<float> out(kThreads);
  planted::launch(copy_shared<Excess>, 1, kThreads, kThreads * sizeof(float), out.data());
  out.print();
}

void run_read_unwritten() {
  planted::Array<float> out(kThreads);
  // The second launch's blocks must not find what the first one's left.
  planted::launch(copy_shared<0>, 8, kThreads, kThreads * sizeof(float), out.data());
  planted::launch(read_unwritten, 8, kThreads, kThreads * sizeof(float), out.data());
  for (int i = 0; i < kThreads; ++i) planted::expect(std::isnan(out[i]), "unwritten shared memory to read as NaN", i);
}

template <int Offset>
void run_copy_vectors() {
  planted::Array<float> out(4 * kThreads + Offset), in(4 * kThreads + Offset);
  planted::launch(copy_vectors<Offset>, 1, kThreads, 0, out.data(), in.data());
  out.print();
}

const planted::Register registered[] = {
    {"device-read", run_copy_device<0>},      {"device-read-past-the-end", run_copy_device<1>},
    {"device-write", run_copy_to_device<0>},  {"device-write-past-the-end", run_copy_to_device<1>},
    {"shared-read", run_copy_shared<0>},      {"shared-read-past-the-end", run_copy_shared<1>},
    {"vector-access", run_copy_vectors<0>},   {"vector-access-misaligned", run_copy_vectors<2>},
    {"shared-unwritten", run_read_unwritten},
};

}  // namespace
