// The CPU's products with an input of events (cpu/events.h), as the operators take them: each chunk of time by events where
// it is made of them and few are ones. The choice depends on the chunk's values alone, so that a backward which projects a
// chunk again finds the bits of the forward.
#pragma once

#include <memory>

#include "../cpu/events.h"
#include "tensors.h"

namespace leakypar {

template <typename Scalar, typename Projected>
class CpuEvents {
  using Real = State<Scalar>;
  using Tiles = cpu::NeuronTiles<Real>;

 public:
  explicit CpuEvents(const cpu::Threads& threads) : threads_(threads) {}

  // u [rows, H] = x W^T, for x [rows, C] and W [H, C]. False where it is left to a dense product.
  bool project(const Tensor& u, const Tensor& x, const Tensor& weight) {
    if (!pack(x, weight.size(0), most_ones_forward)) return false;
    if (!weights_) {
      const Tensor dense_rows = torch::stable::contiguous(weight);
      weights_ = std::make_unique<Tiles>(weight.size(1), weight.size(0));
      finite_ =
          cpu::pack_weights(*weights_, static_cast<const Scalar*>(dense_rows.data_ptr()), weight.size(1), threads_);
    }
    if (!finite_) return false;
    cpu::project_events(static_cast<Projected*>(u.data_ptr()), events_, *weights_, threads_);
    return true;
  }

  // dW^T += x^T d_u, for x [rows, C] and a contiguous d_u [rows, H]. False where it is left to a dense product.
  bool add(const Tensor& grad_u, const Tensor& x) {
    const std::int64_t H = grad_u.size(1);
    if (!pack(x, H, most_ones_backward)) return false;
    const auto* const d_u = static_cast<const Projected*>(grad_u.data_ptr());
    if (!cpu::all_finite(d_u, grad_u.numel(), threads_)) return false;
    if (!sums_) sums_ = std::make_unique<Tiles>(x.size(1), H);
    cpu::add_event_gradient(*sums_, events_, d_u, threads_);
    return true;
  }

  // Adds what add() has gathered to total [H, C], in the state type; makes that where there is none.
  void add_gradient_to(MaybeTensor& total, const Tensor& like) const {
    if (!sums_) return;
    if (!total) total = new_zeros(like, {sums_->H, sums_->C}, dtype_of<Real>);
    total = converted(*total, dtype_of<Real>);
    cpu::add_transposed(static_cast<Real*>(total->data_ptr()), *sums_, threads_);
  }

 private:
  // The shares of ones up to which events are taken, below where they cost what a dense product does (docs/events.md); and
  // the rows, features and neurons from which they are.
  static constexpr double most_ones_forward = 0.4, most_ones_backward = 0.3;
  static constexpr std::int64_t least_rows = 256, least_features = 32, least_neurons = 32;

  bool pack(const Tensor& x, std::int64_t H, double most_ones) {
    const std::int64_t rows = x.size(0), C = x.size(1);
    if (rows < least_rows || C < least_features || H < least_neurons || x.stride(1) != 1) return false;
    const auto* const from = static_cast<const Scalar*>(x.data_ptr());
    const auto few = [&](std::int64_t count, std::int64_t of_rows) {
      return static_cast<double>(count) <= most_ones * static_cast<double>(of_rows * C);
    };
    // A look at some rows first: whatever is not made of events, or has too many ones, costs no more than that.
    const std::int64_t looked_at = rows / 32;
    return cpu::pack_events(events_, from, looked_at, C, x.stride(0), threads_) && few(events_.count, looked_at) &&
           cpu::pack_events(events_, from, rows, C, x.stride(0), threads_) && few(events_.count, rows);
  }

  cpu::Threads threads_;
  cpu::EventRows events_;
  std::unique_ptr<Tiles> weights_, sums_;
  bool finite_ = false;
};

}  // namespace leakypar
