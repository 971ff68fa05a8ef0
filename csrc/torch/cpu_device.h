// The CPU, as the operators see a device.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "products.h"

namespace leakypar {

struct Cpu {
  // Few CPUs multiply 16-bit matrices at speed, so products take the state type: 16-bit tensors are widened a chunk at a
  // time, and u and its gradient are never rounded.
  template <typename Scalar>
  using Projected = State<Scalar>;

  static DeviceFacts facts(const Tensor&) { return cpu_facts; }

  struct Guard {
    explicit Guard(const Tensor&) {}
  };

  static void product(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate, bool) {
    if (!accumulate) return aten_product(out, a, b);
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
  }

  // Whether product() can add to what is there.
  static bool accumulates(ScalarType) { return true; }

  static std::int64_t time_chunks(Scan, std::int64_t) { return 1; }

  static void parallel_for(std::int64_t count, std::int64_t grain,
                           const std::function<void(std::int64_t, std::int64_t)>& body) {
    torch::stable::parallel_for(0, count, grain, body);
  }

  template <typename Scalar>
  static void scan(const ScanForward<Scalar, State<Scalar>>& args, Scan, const Tensor&) {
    cpu::scan_forward<Scalar>(args, parallel_for);
  }

  template <typename Scalar>
  static void scan(const ScanBackward<Scalar, State<Scalar>>& args, Scan, const Tensor&) {
    cpu::scan_backward<Scalar>(args, parallel_for);
  }
};

}  // namespace leakypar
