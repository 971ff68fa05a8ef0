// What the operators share: how tensors are checked, described to the kernels, and made. Torch's stable ABI alone is used.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels.h"
#include "../plan/measured.h"

// A call of torch's C functions, whose failure is an exception: with torch's own reason where the headers can ask for it.
#ifdef STABLE_TORCH_ERROR_CODE_CHECK
#define LEAKYPAR_TORCH(call) STABLE_TORCH_ERROR_CODE_CHECK(call)
#else
#define LEAKYPAR_TORCH(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace leakypar {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline std::string shape(const Tensor& tensor) {
  std::ostringstream text;
  text << "[";
  for (std::int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << "]";
  return text.str();
}

template <typename Size>
std::string listed(const std::vector<Size>& sizes) {
  std::ostringstream text;
  for (std::size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  return text.str();
}

inline void check_dimensions(const Tensor& tensor, const char* name, const std::vector<const char*>& expected) {
  STD_TORCH_CHECK(tensor.dim() == static_cast<std::int64_t>(expected.size()), "leakypar: ", name, " has shape ",
                  shape(tensor), ", expected [", listed(expected), "]");
}

inline void check_shape(const Tensor& tensor, const char* name, const std::vector<std::int64_t>& expected) {
  bool equal = tensor.dim() == static_cast<std::int64_t>(expected.size());
  for (std::size_t i = 0; equal && i < expected.size(); ++i) equal = tensor.size(i) == expected[i];
  STD_TORCH_CHECK(equal, "leakypar: ", name, " has shape ", shape(tensor), ", expected [", listed(expected), "]");
}

inline void check_like(const Tensor& tensor, const char* name, const Tensor& like, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, "leakypar: ", name, " has dtype ",
                  torch::headeronly::toString(tensor.scalar_type()), ", expected ", torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(tensor.device() == like.device(), "leakypar: ", name, " is on another device than the input");
}

template <typename Scalar>
inline constexpr ScalarType dtype_of = ScalarType::Float;
template <>
inline constexpr ScalarType dtype_of<double> = ScalarType::Double;
template <>
inline constexpr ScalarType dtype_of<float16> = ScalarType::Half;
template <>
inline constexpr ScalarType dtype_of<bfloat16> = ScalarType::BFloat16;

inline DType parameter_dtype(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::Double:
      return DType::float64;
    case ScalarType::Half:
      return DType::float16;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    default:
      STD_TORCH_CHECK(false, "leakypar: ", name, " has dtype ", torch::headeronly::toString(tensor.scalar_type()),
                      ", expected float32, float64, float16 or bfloat16");
  }
}

// What the products of a device compute in, for elements of this type.
template <typename Scalar>
constexpr Precision precision_of(bool allow_tf32) {
  if constexpr (std::is_same_v<Scalar, double>) return Precision::float64;
  if constexpr (std::is_same_v<Scalar, float16>) return Precision::float16;
  if constexpr (std::is_same_v<Scalar, bfloat16>) return Precision::bfloat16;
  return allow_tf32 ? Precision::tf32 : Precision::float32;
}

template <typename Body>
auto dispatch_element(ScalarType dtype, Body body) {
  switch (dtype) {
    case ScalarType::Float:
      return body(std::type_identity<float>());
    case ScalarType::Double:
      return body(std::type_identity<double>());
    case ScalarType::Half:
      return body(std::type_identity<float16>());
    case ScalarType::BFloat16:
      return body(std::type_identity<bfloat16>());
    default:
      STD_TORCH_CHECK(false, "leakypar: dtype ", torch::headeronly::toString(dtype),
                      " has no kernel; expected float32, float64, float16 or bfloat16");
  }
}

template <typename Scalar, typename Projected>
struct Types {};

// Calls body with the element type, and the one that this device's products take for it.
template <typename Device, typename Body>
auto dispatch_types(ScalarType dtype, Body body) {
  return dispatch_element(dtype, [&]<typename Scalar>(std::type_identity<Scalar>) {
    return Device::template dispatch_projected<Scalar>(
        [&]<typename Projected>(std::type_identity<Projected>) { return body(Types<Scalar, Projected>()); });
  });
}

inline Parameter parameter(const MaybeTensor& tensor, const char* name, std::int64_t H, const Tensor& like) {
  if (!tensor) return {nullptr, DType::float32, 0};
  const bool scalar = tensor->dim() == 0 || (tensor->dim() == 1 && tensor->size(0) == 1);
  if (!scalar) check_shape(*tensor, name, {H});
  STD_TORCH_CHECK(tensor->device() == like.device(), "leakypar: ", name, " is on another device than the input");
  return {tensor->data_ptr(), parameter_dtype(*tensor, name), scalar ? 0 : tensor->stride(0)};
}

// None is no bound.
inline Bounds bounds_from(std::optional<double> lower, std::optional<double> upper) {
  constexpr double none = std::numeric_limits<double>::quiet_NaN();
  return {lower.value_or(none), upper.value_or(none)};
}

inline Neurons neurons_from(const Tensor& decay, const MaybeTensor& bias_ih, const MaybeTensor& bias_hh,
                            const Tensor& threshold, const Tensor& gain, const Bounds& bounds, std::int64_t H,
                            const Tensor& like) {
  return {parameter(decay, "decay", H, like),     parameter(bias_ih, "bias_ih", H, like),
          parameter(bias_hh, "bias_hh", H, like), parameter(threshold, "threshold", H, like),
          parameter(gain, "gain", H, like),       bounds};
}

// Which outputs of an operator are asked for: bit i of the mask is the i-th of its results.
inline bool wants(std::int64_t outputs, int result) { return (outputs >> result & 1) != 0; }

inline void check_outputs(std::int64_t outputs, int results) {
  STD_TORCH_CHECK(outputs >= 0 && outputs < std::int64_t{1} << results, "leakypar: outputs is ", outputs,
                  ", expected a mask of ", results, " bits");
}

// Dropout with probability p of the elements from `first` on, or none where there is no seed.
inline Dropout dropout_from(const MaybeTensor& seed, double p, std::int64_t first, const Tensor& like) {
  if (!seed) return {};
  STD_TORCH_CHECK(p >= 0.0 && p <= 1.0, "leakypar: dropout is ", p, ", expected a probability in [0, 1]");
  STD_TORCH_CHECK(seed->numel() == 1 && seed->scalar_type() == ScalarType::Long, "leakypar: seed has dtype ",
                  torch::headeronly::toString(seed->scalar_type()), " and ", seed->numel(),
                  " values, expected one of int64");
  STD_TORCH_CHECK(seed->device() == like.device(), "leakypar: seed is on another device than the input");
  const auto dropped = static_cast<std::int32_t>(std::lround(std::ldexp(p, Dropout::resolution)));
  return {static_cast<const std::int64_t*>(seed->data_ptr()), dropped, p < 1.0 ? 1.0 / (1.0 - p) : 0.0, first};
}

// The sequences' own lengths, for arrays that begin with step `first`; none where there is no tensor.
inline Lengths lengths_from(const MaybeTensor& lengths, std::int64_t first, std::int64_t N, const Tensor& like) {
  if (!lengths) return {};
  check_shape(*lengths, "lengths", {N});
  check_like(*lengths, "lengths", like, ScalarType::Long);
  STD_TORCH_CHECK(N <= 1 || lengths->stride(0) == 1, "leakypar: lengths is not contiguous");
  return {static_cast<const std::int64_t*>(lengths->data_ptr()), first};
}

// Where an element of a tensor lies; null where there is no tensor.
template <typename Type>
Type* pointer(const MaybeTensor& tensor, std::int64_t offset = 0) {
  return tensor ? static_cast<Type*>(tensor->data_ptr()) + offset : nullptr;
}

// An element type as torch's C functions count them.
inline std::int32_t shim_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return aoti_torch_dtype_float32();
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    case ScalarType::Byte:
      return aoti_torch_dtype_uint8();
    case ScalarType::Long:
      return aoti_torch_dtype_int64();
    default:
      STD_TORCH_CHECK(false, "leakypar: no tensor is made of dtype ", torch::headeronly::toString(dtype));
  }
}

// Memory for a tensor. The stable ABI tells that there is none, not why: leakypar/ops.py makes torch's own error again of
// this one.
template <typename Allocate>
Tensor allocated(Allocate allocate, const Tensor& like, const std::vector<std::int64_t>& sizes, ScalarType dtype) {
  try {
    return allocate(like, sizes, dtype);
  } catch (const std::runtime_error&) {
    STD_TORCH_CHECK(false, "leakypar: ", like.is_cuda() ? "CUDA" : "CPU",
                    " out of memory. Tried to allocate a tensor of shape [", listed(sizes), "] and dtype ",
                    torch::headeronly::toString(dtype));
  }
}

// Contiguous and uninitialised. This and the views below go through C functions of the stable ABI that box nothing and
// dispatch little: a short sequence spends more on operators than on the scan.
inline Tensor new_empty(const Tensor& like, const std::vector<std::int64_t>& sizes, ScalarType dtype) {
  const auto allocate = [](const Tensor& like, const std::vector<std::int64_t>& sizes, ScalarType dtype) {
    std::vector<std::int64_t> strides(sizes.size(), 1);
    for (std::size_t i = sizes.size(); i > 1; --i) {
      strides[i - 2] = strides[i - 1] * std::max<std::int64_t>(sizes[i - 1], 1);
    }
    std::int32_t device_type = 0;
    LEAKYPAR_TORCH(aoti_torch_get_device_type(like.get(), &device_type));
    AtenTensorHandle made = nullptr;
    // Torch would print a trace of every allocation that fails, and the reason is known.
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<std::int64_t>(sizes.size()), sizes.data(),
                                                    strides.data(), shim_dtype(dtype), device_type,
                                                    like.get_device_index(), &made));
    return Tensor(made);
  };
  return allocated(allocate, like, sizes, dtype);
}

inline Tensor new_zeros(const Tensor& like, const std::vector<std::int64_t>& sizes, ScalarType dtype) {
  const auto allocate = [](const auto&... arguments) { return torch::stable::new_zeros(arguments...); };
  return allocated(allocate, like, sizes, dtype);
}

// What an operator returns for an output: its tensor, or one without elements where nobody asked for it.
inline Tensor or_empty(const MaybeTensor& tensor, const Tensor& like) {
  return tensor ? *tensor : new_empty(like, {0}, like.scalar_type());
}

// The tensor itself where nothing changes: an operator of torch that has nothing to do still costs a microsecond.
inline Tensor converted(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// The same storage from the same element on, seen as a matrix.
inline Tensor seen_as(const Tensor& tensor, const std::array<std::int64_t, 2>& sizes,
                      const std::array<std::int64_t, 2>& strides) {
  AtenTensorHandle made = nullptr;
  LEAKYPAR_TORCH(aoti_torch__reinterpret_tensor(tensor.get(), 2, sizes.data(), strides.data(), 0, &made));
  return Tensor(made);
}

// A [T, N, C] as [T N, C], without a copy where time steps follow one another as batch rows do.
inline Tensor matrix(const Tensor& tensor) {
  const std::int64_t T = tensor.size(0), N = tensor.size(1), C = tensor.size(2);
  const std::array<std::int64_t, 2> sizes = {T * N, C};
  if (T > 1 && N > 1 && tensor.stride(0) != N * tensor.stride(1)) return torch::stable::reshape(tensor, sizes);
  return seen_as(tensor, sizes, {tensor.stride(N > 1 ? 1 : 0), tensor.stride(2)});
}

inline Tensor transposed(const Tensor& matrix) {
  return seen_as(matrix, {matrix.size(1), matrix.size(0)}, {matrix.stride(1), matrix.stride(0)});
}

inline Tensor steps(const Tensor& tensor, std::int64_t first, std::int64_t count) {
  if (count == tensor.size(0)) return tensor;
  Tensor whole = tensor;
  return torch::stable::narrow(whole, 0, first, count);
}

// A carry [N, H] in the state type, contiguous.
inline MaybeTensor state(const MaybeTensor& tensor, const char* name, std::int64_t N, std::int64_t H,
                         ScalarType dtype) {
  if (!tensor) return std::nullopt;
  check_shape(*tensor, name, {N, H});
  parameter_dtype(*tensor, name);
  return torch::stable::contiguous(converted(*tensor, dtype));
}

// The operators are not differentiable by themselves, and torch refuses to write a product into a given tensor while it
// records.
class NoGrad {
 public:
  NoGrad() : enabled_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(enabled_); }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool enabled_;
};

}  // namespace leakypar
