// The CPU, as the operators see a device.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "cpu_events.h"
#include "products.h"

namespace leakypar {

struct Cpu {
  // Calls body with the element type that products take, and leave u in. Few CPUs multiply 16-bit matrices at speed, so that
  // is the state type: 16-bit tensors are widened a chunk at a time, and u and its gradient are never rounded. Where the
  // processor has instructions for bfloat16, the vendor's products have twice the speed with it, and it is that.
  template <typename Scalar, typename Body>
  static auto dispatch_projected(Body body) {
    if constexpr (std::is_same_v<Scalar, bfloat16>) {
      if (multiplies_bfloat16()) return body(std::type_identity<bfloat16>());
    }
    return body(std::type_identity<State<Scalar>>());
  }

  static bool multiplies_bfloat16() {
#ifdef __x86_64__
    return __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
  }

  // Whether a backward scan may write its gradient over the membrane that it reads.
  template <typename Scalar, typename Projected>
  static constexpr bool overwrites = std::is_same_v<Scalar, Projected>;

  // The products with events, where the share of ones is at most this.
  template <typename Scalar, typename Projected>
  static CpuEvents<Scalar, Projected> products(double event_rate) {
    return CpuEvents<Scalar, Projected>(event_rate, threads());
  }

  // Packing tells whether x is made of events, so nobody has to promise it.
  static constexpr bool finds_events = true;

  template <typename Scalar>
  static std::optional<Events> pack(const Tensor& x, double rate) {
    return pack_on_cpu<Scalar>(x, rate, threads());
  }

  template <typename Scalar>
  static void unpack(const Tensor& rows, const Tensor& bits, const Events& events) {
    const Scalar value = *static_cast<const Scalar*>(events.value.data_ptr());
    const cpu::EventRows from = {rows.size(0), events.C, words_of(bits), static_cast<double>(widen(value))};
    cpu::unpack_events(static_cast<Scalar*>(rows.data_ptr()), from, threads());
  }

  static DeviceFacts facts(const Tensor&) { return cpu_facts; }

  struct Guard {
    explicit Guard(const Tensor&) {}
  };

  // Through C functions, as stable as the dispatcher and without its boxes.
  static void product(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate, bool) {
    const AOTITorchError error = accumulate ? aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0)
                                            : aoti_torch_cpu_mm_out(out.get(), a.get(), b.get());
    LEAKYPAR_TORCH(error);
  }

  // Whether product() can add to what is there.
  template <typename Projected>
  static constexpr bool accumulates = std::is_same_v<Projected, State<Projected>>;

  static std::int64_t time_tiles(Method, std::int64_t) { return 1; }

  template <typename Scalar>
  static constexpr bool has_project_scan = false;

  // Clang looks this name up before it discards the branch that calls it.
  template <typename Scalar>
  static void project_scan(const ProjectScan<Scalar>&, const ProjectTiles&, const Tensor&) = delete;

  static cpu::Threads threads() {
    const auto parallel_for = [](std::int64_t count, std::int64_t grain,
                                 const std::function<void(std::int64_t, std::int64_t)>& body) {
      torch::stable::parallel_for(0, count, grain, body);
    };
    return {static_cast<int>(torch::stable::get_num_threads()), parallel_for};
  }

  template <typename Scalar, typename Projected>
  static void scan(const ScanForward<Scalar, Projected>& args, Method, const Tensor&) {
    cpu::scan_forward(args, threads());
  }

  template <typename Scalar, typename Projected>
  static void scan(const ScanBackward<Scalar, Projected>& args, Method, const Tensor&) {
    cpu::scan_backward(args, threads());
  }
};

}  // namespace leakypar
