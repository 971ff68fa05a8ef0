// Matrix products and sums through torch's own operators.
#pragma once

#include "tensors.h"

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
  WeightGradient(const Tensor& like, std::int64_t H, std::int64_t C, bool allow_tf32)
      : like_(like), H_(H), C_(C), allow_tf32_(allow_tf32), events_(Device::template events<Scalar, Projected>()) {}

  // grad_u [rows, H], x [rows, C].
  void add(const Tensor& grad_u, const Tensor& x) {
    constexpr ScalarType dtype = dtype_of<Projected>;
    if (events_.add(grad_u, x)) return;
    const Tensor a = transposed(grad_u), b = converted(x, dtype);
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
  decltype(Device::template events<Scalar, Projected>()) events_;
};

// u = x W^T for a run of time steps: written where the scan's output goes, which the scan overwrites in place, or into a
// buffer of its own where that has another element type or there is no output.
template <typename Device, typename Scalar, typename Projected>
class Projection {
  static constexpr bool in_place = std::is_same_v<Projected, Scalar>;

 public:
  // x [T, N, C], weight [H, C]; output: none, [T, N, H], or as many steps as the longest run, each of which starts over.
  Projection(const Tensor& x, const Tensor& weight, const MaybeTensor& output, std::int64_t longest, bool allow_tf32)
      : x_(x),
        weight_(weight),
        output_(in_place ? output : std::nullopt),
        allow_tf32_(allow_tf32),
        events_(Device::template events<Scalar, Projected>()) {
    if (!output_) {
      output_ = new_empty(x, {std::min(longest, x.size(0)), x.size(1), weight.size(0)}, dtype_of<Projected>);
    }
    starts_over_ = output_->size(0) < x.size(0);
  }

  // u [count, N, H] of the steps from this one on.
  const Projected* operator()(std::int64_t first, std::int64_t count) {
    const Tensor from = matrix(steps(x_, first, count));
    const Tensor into = matrix(steps(*output_, starts_over_ ? 0 : first, count));
    if (!events_.project(into, from, weight_)) {
      if (!weight_transposed_) weight_transposed_ = transposed(converted(weight_, dtype_of<Projected>));
      Device::product(into, converted(from, dtype_of<Projected>), *weight_transposed_, false, allow_tf32_);
    }
    return static_cast<const Projected*>(into.data_ptr());
  }

 private:
  Tensor x_, weight_;
  MaybeTensor output_, weight_transposed_;
  bool starts_over_, allow_tf32_;
  decltype(Device::template events<Scalar, Projected>()) events_;
};

}  // namespace leakypar
