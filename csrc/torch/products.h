// Matrix products and sums through torch's own operators.
#pragma once

#include "input.h"

namespace leakypar {

// out = a b through torch's own operator.
inline void aten_product(const Tensor& out, const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 3> stack = {torch::stable::detail::from(a), torch::stable::detail::from(b),
                                       torch::stable::detail::from(out)};
  LEAKYPAR_TORCH(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);  // the returned alias of out, released
}

// The gradient of the weights, a sum of products d_u^T x that come chunk by chunk. It is held in the state type: 16-bit
// pieces would lose what a single product keeps.
template <typename Device, typename Scalar, typename Projected>
class WeightGradient {
 public:
  // event_rate: the share of ones up to which a product is event-driven.
  WeightGradient(const Tensor& like, std::int64_t H, std::int64_t C, double event_rate, bool allow_tf32)
      : like_(like),
        H_(H),
        C_(C),
        allow_tf32_(allow_tf32),
        events_(Device::template products<Scalar, Projected>(event_rate)) {}

  // grad_u [rows, H], of the steps of x from this one on.
  void add(const Tensor& grad_u, const Input<Device, Scalar>& x, std::int64_t first, std::int64_t count) {
    constexpr ScalarType dtype = dtype_of<Projected>;
    if (events_.add(grad_u, x, first, count)) return;
    const Tensor a = transposed(grad_u), b = x.rows(first, count, dtype);
    if (total_ && Device::template accumulates<Projected>) return Device::product(*total_, a, b, true, allow_tf32_);
    const Tensor product = new_empty(like_, {H_, C_}, dtype);
    Device::product(product, a, b, false, allow_tf32_);
    // Of torch's sums of two tensors, the stable ABI has the difference.
    total_ = total_ ? torch::stable::subtract(converted(*total_, dtype_of<State<Scalar>>), product, -1.0) : product;
  }

  Tensor result() {
    events_.add_gradient_to(total_, like_);
    if (!total_) return new_zeros(like_, {H_, C_}, dtype_of<Scalar>);
    return converted(*total_, dtype_of<Scalar>);
  }

 private:
  Tensor like_;
  std::int64_t H_, C_;
  bool allow_tf32_;
  MaybeTensor total_;
  decltype(Device::template products<Scalar, Projected>(0.0)) events_;
};

// u = x W^T for a run of time steps: written where the scan's output goes, which the scan overwrites in place, or into a
// buffer of its own where that has another element type or there is no output.
template <typename Device, typename Scalar, typename Projected>
class Projection {
  static constexpr bool in_place = std::is_same_v<Projected, Scalar>;

 public:
  // weight [H, C]; output: none, [T, N, H], or as many steps as the longest run, each of which starts over. event_rate: the
  // share of ones up to which a product is event-driven.
  Projection(const Input<Device, Scalar>& x, const Tensor& weight, const MaybeTensor& output, std::int64_t longest,
             double event_rate, bool allow_tf32)
      : x_(x),
        weight_(weight),
        output_(in_place ? output : std::nullopt),
        allow_tf32_(allow_tf32),
        events_(Device::template products<Scalar, Projected>(event_rate)) {
    if (!output_) {
      output_ = new_empty(weight, {std::min(longest, x.T()), x.N(), weight.size(0)}, dtype_of<Projected>);
    }
    starts_over_ = output_->size(0) < x.T();
  }

  // u [count, N, H] of the steps from this one on.
  const Projected* operator()(std::int64_t first, std::int64_t count) {
    const Tensor into = matrix(steps(*output_, starts_over_ ? 0 : first, count));
    if (!events_.project(into, x_, first, count, weight_)) {
      constexpr ScalarType dtype = dtype_of<Projected>;
      if (!weight_transposed_) weight_transposed_ = transposed(converted(weight_, dtype));
      Device::product(into, x_.rows(first, count, dtype), *weight_transposed_, false, allow_tf32_);
    }
    return static_cast<const Projected*>(into.data_ptr());
  }

 private:
  Input<Device, Scalar> x_;
  Tensor weight_;
  MaybeTensor output_, weight_transposed_;
  bool starts_over_, allow_tf32_;
  decltype(Device::template products<Scalar, Projected>(0.0)) events_;
};

}  // namespace leakypar
