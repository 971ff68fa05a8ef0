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

  // Whether a backward scan may write its gradient over the membrane that it reads.
  template <typename Scalar>
  static constexpr bool overwrites = std::is_same_v<Scalar, State<Scalar>>;

  static DeviceFacts facts(const Tensor&) { return cpu_facts; }

  struct Guard {
    explicit Guard(const Tensor&) {}
  };

  // Through C functions, as stable as the dispatcher and without its boxes.
  static void product(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate, bool) {
    const AOTITorchError error = accumulate ? aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0)
                                            : aoti_torch_cpu_mm_out(out.get(), a.get(), b.get());
    TORCH_ERROR_CODE_CHECK(error);
  }

  // Whether product() can add to what is there.
  static bool accumulates(ScalarType) { return true; }

  static std::int64_t time_chunks(Scan, std::int64_t) { return 1; }

  static cpu::Threads threads() {
    const auto parallel_for = [](std::int64_t count, std::int64_t grain,
                                 const std::function<void(std::int64_t, std::int64_t)>& body) {
      torch::stable::parallel_for(0, count, grain, body);
    };
    return {static_cast<int>(torch::stable::get_num_threads()), parallel_for};
  }

  template <typename Scalar>
  static void scan(const ScanForward<Scalar, State<Scalar>>& args, Scan, const Tensor&) {
    cpu::scan_forward<Scalar>(args, threads());
  }

  template <typename Scalar>
  static void scan(const ScanBackward<Scalar, State<Scalar>>& args, Scan, const Tensor&) {
    cpu::scan_backward<Scalar>(args, threads());
  }
};

}  // namespace leakypar
