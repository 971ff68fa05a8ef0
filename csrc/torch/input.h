// The input of a layer as its products take it: x as it came, or as the bits of events (math/event_bits.h).
#pragma once

#include "../math/event_bits.h"
#include "tensors.h"

namespace leakypar {

// What the bits of an input are, and what they stand for.
struct Events {
  Tensor bits;     // int64 [T, N, words]
  Tensor value;    // [1], of the input's type
  std::int64_t C;  // features
};

inline Events events_from(const Tensor& bits, const MaybeTensor& value, std::int64_t C) {
  STD_TORCH_CHECK(value.has_value(), "leakypar: event_value is not given, expected what forward left with event_bits");
  STD_TORCH_CHECK(C >= 0, "leakypar: features is ", C, ", expected the size of x");
  check_dimensions(bits, "event_bits", {"T", "N", "words"});
  check_shape(bits, "event_bits", {bits.size(0), bits.size(1), event_words(C)});
  check_shape(*value, "event_value", {1});
  check_like(bits, "event_bits", *value, ScalarType::Long);
  STD_TORCH_CHECK(bits.is_contiguous(), "leakypar: event_bits is not contiguous, expected what forward left");
  return {bits, *value, C};
}

// Room for the bits of x [T, N, C].
inline Tensor new_event_bits(const Tensor& x) {
  return new_empty(x, {x.size(0), x.size(1), event_words(x.size(2))}, ScalarType::Long);
}

// An x [T, N, C] or weight [H, C] whose last dimension is contiguous; a copy only where it is not.
inline Tensor with_dense_rows(const Tensor& tensor) {
  const std::int64_t last = tensor.dim() - 1;
  return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor : torch::stable::contiguous(tensor);
}

// x as events: where it is promised to be made of them, whatever that takes, else where its device finds them in the time
// that they save. rate: the share of ones up to which they are sought; 0 for none.
template <typename Device, typename Scalar>
std::optional<Events> packed(const Tensor& x, bool promised, double rate) {
  if (promised) {
    auto events = Device::template pack<Scalar>(with_dense_rows(x), 1.0);
    if (!events) {
      throw std::invalid_argument(
          "binary_input must be None or False for an x that has more values than zero and one other, got True");
    }
    return events;
  }
  if (!Device::finds_events || rate == 0 || x.stride(2) != 1) return std::nullopt;
  return Device::template pack<Scalar>(x, rate);
}

template <typename Device, typename Scalar>
class Input {
 public:
  explicit Input(const Tensor& x) : T_(x.size(0)), N_(x.size(1)), C_(x.size(2)), x_(x) {}
  explicit Input(const Events& events)
      : T_(events.bits.size(0)), N_(events.bits.size(1)), C_(events.C), events_(events) {}

  // x itself is at hand as well.
  Input(const Tensor& x, const std::optional<Events>& events) : Input(x) { events_ = events; }

  std::int64_t T() const { return T_; }
  std::int64_t N() const { return N_; }
  std::int64_t C() const { return C_; }
  const std::optional<Events>& events() const { return events_; }

  // The steps from `first` on as a matrix [count N, C] of `dtype`, for a dense product.
  Tensor rows(std::int64_t first, std::int64_t count, ScalarType dtype) const {
    if (x_) return converted(matrix(steps(*x_, first, count)), dtype);
    const Tensor unpacked = new_empty(events_->bits, {count * N_, C_}, dtype_of<Scalar>);
    Device::template unpack<Scalar>(unpacked, steps(events_->bits, first, count), *events_);
    return converted(unpacked, dtype);
  }

 private:
  std::int64_t T_, N_, C_;
  MaybeTensor x_;
  std::optional<Events> events_;
};

}  // namespace leakypar
