// The CPU's part in events (cpu/events.h), as the operators take it: an input is packed whole, and each chunk of time
// multiplied by events where few are ones. That choice depends on the chunk's bits alone, so that a backward which projects a
// chunk again finds the bits of the forward.
#pragma once

#include <memory>

#include "../cpu/events.h"
#include "input.h"

namespace leakypar {

// An x whose features lie side by side.
template <typename Scalar>
cpu::InputRows<Scalar> input_rows(const Tensor& x, std::int64_t steps) {
  return {static_cast<const Scalar*>(x.data_ptr()), steps * x.size(1), x.size(1), x.size(2), x.stride(0), x.stride(1)};
}

inline const std::uint64_t* words_of(const Tensor& bits) { return static_cast<const std::uint64_t*>(bits.data_ptr()); }

// At most this share of the elements of these bits are ones.
inline bool few_ones(const Tensor& bits, std::int64_t steps, std::int64_t C, double rate, const cpu::Threads& threads) {
  const std::int64_t rows = steps * bits.size(1);
  const std::int64_t ones = cpu::count_ones(words_of(bits), rows * event_words(C), threads);
  return static_cast<double>(ones) <= rate * static_cast<double>(rows * C);
}

// x [T, N, C] as events; nothing where it has another value than zero and one more, or more ones than the rate says. Where the
// rate says anything, a part of x is looked at first: too many ones then cost little.
template <typename Scalar>
std::optional<Events> pack_on_cpu(const Tensor& x, double rate, const cpu::Threads& threads) {
  const std::int64_t T = x.size(0), C = x.size(2);
  const Tensor bits = new_event_bits(x), value = new_empty(x, {1}, dtype_of<Scalar>);
  auto* const words = static_cast<std::uint64_t*>(bits.data_ptr());
  auto* const only = static_cast<Scalar*>(value.data_ptr());
  *only = Scalar{};
  if (x.numel() == 0) return Events{bits, value, C};
  const auto packs = [&](std::int64_t steps) {
    const auto found = cpu::pack_events(words, input_rows<Scalar>(x, steps), threads);
    if (found) *only = *found;
    return found && (rate >= 1 || few_ones(bits, steps, C, rate, threads));
  };
  if (rate < 1 && !packs((T + 31) / 32)) return std::nullopt;
  return packs(T) ? std::optional(Events{bits, value, C}) : std::nullopt;
}

template <typename Scalar, typename Projected>
class CpuEvents {
  using Real = State<Scalar>;
  using Tiles = cpu::NeuronTiles<Real>;

 public:
  // rate: the share of ones up to which a chunk is multiplied by events.
  CpuEvents(double rate, const cpu::Threads& threads) : rate_(rate), threads_(threads) {}

  // u [rows, H] = x W^T, for the steps of x [.., N, C] from `first` on and W [H, C]. False where it is left to a dense
  // product.
  template <typename Device>
  bool project(const Tensor& u, const Input<Device, Scalar>& x, std::int64_t first, std::int64_t count,
               const Tensor& weight) {
    const auto events = few(x, first, count);
    if (!events) return false;
    if (!weights_) {
      const Tensor dense_rows = torch::stable::contiguous(weight);
      weights_ = std::make_unique<Tiles>(weight.size(1), weight.size(0));
      finite_ =
          cpu::pack_weights(*weights_, static_cast<const Scalar*>(dense_rows.data_ptr()), weight.size(1), threads_);
    }
    if (!finite_) return false;
    cpu::project_events(static_cast<Projected*>(u.data_ptr()), *events, *weights_, threads_);
    return true;
  }

  // dW^T += x^T d_u, for a contiguous d_u [rows, H]. False where it is left to a dense product.
  template <typename Device>
  bool add(const Tensor& grad_u, const Input<Device, Scalar>& x, std::int64_t first, std::int64_t count) {
    const auto events = few(x, first, count);
    if (!events) return false;
    const auto* const d_u = static_cast<const Projected*>(grad_u.data_ptr());
    if (!cpu::all_finite(d_u, grad_u.numel(), threads_)) return false;
    if (!sums_) sums_ = std::make_unique<Tiles>(x.C(), grad_u.size(1));
    cpu::add_event_gradient(*sums_, *events, d_u, threads_);
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
  template <typename Device>
  std::optional<cpu::EventRows> few(const Input<Device, Scalar>& x, std::int64_t first, std::int64_t count) const {
    if (!x.events() || rate_ == 0) return std::nullopt;
    const Tensor bits = steps(x.events()->bits, first, count);
    if (!few_ones(bits, count, x.C(), rate_, threads_)) return std::nullopt;
    const Scalar value = *static_cast<const Scalar*>(x.events()->value.data_ptr());
    return cpu::EventRows{count * x.N(), x.C(), words_of(bits), static_cast<double>(widen(value))};
  }

  double rate_;
  cpu::Threads threads_;
  std::unique_ptr<Tiles> weights_, sums_;
  bool finite_ = false;
};

}  // namespace leakypar
