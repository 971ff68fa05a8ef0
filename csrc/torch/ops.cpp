// The operators torch sees, and the only file that knows tensors: checks, allocation, the vendor's products, registration.
//
// The chunked plan: project a chunk of time steps by a plain matrix product, scan it while it lies in the cache, pass the
// carry on. The projection is written where the scan's output goes and the scan overwrites it in place, so no buffer for
// u exists and its cache lines are the output's own.
//
// Only torch's stable ABI is used, so that one binary serves every torch from TORCH_TARGET_VERSION on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "../leakypar.h"

#ifdef LEAKYPAR_WITH_CUDA
#include "cuda_context.h"
#endif

#ifndef LEAKYPAR_NAMESPACE
#define LEAKYPAR_NAMESPACE leakypar
#define LEAKYPAR_CUDA_KEY CUDA
#endif

namespace leakypar {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

std::string shape(const Tensor& tensor) {
  std::ostringstream text;
  text << "[";
  for (std::int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << "]";
  return text.str();
}

void check_shape(const Tensor& tensor, const char* name, const std::vector<std::int64_t>& expected) {
  bool equal = tensor.dim() == static_cast<std::int64_t>(expected.size());
  for (std::size_t i = 0; equal && i < expected.size(); ++i) equal = tensor.size(i) == expected[i];
  if (equal) return;
  std::ostringstream wanted;
  for (std::size_t i = 0; i < expected.size(); ++i) wanted << (i ? ", " : "") << expected[i];
  STD_TORCH_CHECK(false, "leakypar: ", name, " has shape ", shape(tensor), ", expected [", wanted.str(), "]");
}

void check_like(const Tensor& tensor, const char* name, const Tensor& like, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, "leakypar: ", name, " has dtype ",
                  torch::headeronly::toString(tensor.scalar_type()), ", expected ", torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(tensor.device() == like.device(), "leakypar: ", name, " is on another device than the membrane");
}

template <typename Scalar>
inline constexpr ScalarType dtype_of = ScalarType::Float;
template <>
inline constexpr ScalarType dtype_of<double> = ScalarType::Double;
template <>
inline constexpr ScalarType dtype_of<float16> = ScalarType::Half;
template <>
inline constexpr ScalarType dtype_of<bfloat16> = ScalarType::BFloat16;

DType parameter_dtype(const Tensor& tensor, const char* name) {
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

template <typename Body>
auto with_element(ScalarType dtype, Body body) {
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

Parameter parameter(const MaybeTensor& tensor, const char* name, std::int64_t H, const Tensor& like) {
  if (!tensor) return {nullptr, DType::float32, 0};
  const bool scalar = tensor->dim() == 0 || (tensor->dim() == 1 && tensor->size(0) == 1);
  if (!scalar) check_shape(*tensor, name, {H});
  STD_TORCH_CHECK(tensor->device() == like.device(), "leakypar: ", name, " is on another device than the input");
  return {tensor->data_ptr(), parameter_dtype(*tensor, name), scalar ? 0 : tensor->stride(0)};
}

template <typename Type>
Type* pointer(const MaybeTensor& tensor) {
  return tensor ? static_cast<Type*>(tensor->data_ptr()) : nullptr;
}

template <typename Type>
Type* row(const MaybeTensor& tensor, std::int64_t offset) {
  return tensor ? static_cast<Type*>(tensor->data_ptr()) + offset : nullptr;
}

Tensor new_empty(const Tensor& like, const std::vector<std::int64_t>& sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

Tensor nothing(const Tensor& like) { return new_empty(like, {0}, like.scalar_type()); }

Tensor matrix(const Tensor& tensor, std::int64_t rows, std::int64_t columns) {
  const std::array<std::int64_t, 2> sizes = {rows, columns};
  return torch::stable::reshape(tensor, sizes);
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

// out = a b through torch's own operator.
void aten_product(Tensor& out, const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 3> stack = {torch::stable::detail::from(a), torch::stable::detail::from(b),
                                       torch::stable::detail::from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);  // the returned alias of out, released
}

#ifndef LEAKYPAR_EMULATED
struct Cpu {
  static DeviceFacts facts(const Tensor&) { return cpu_facts; }

  struct Guard {
    explicit Guard(const Tensor&) {}
  };

  static void product(Tensor& out, const Tensor& a, const Tensor& b, bool) { aten_product(out, a, b); }

  static std::int64_t time_chunks(Scan, std::int64_t) { return 1; }

  static void parallel_for(std::int64_t count, std::int64_t grain,
                           const std::function<void(std::int64_t, std::int64_t)>& body) {
    torch::stable::parallel_for(0, count, grain, body);
  }

  template <typename Scalar>
  static void scan(const ScanForward<Scalar>& args, Scan, const Tensor&) {
    cpu::scan_forward(args, parallel_for);
  }

  template <typename Scalar>
  static void scan(const ScanBackward<Scalar>& args, Scan, const Tensor&) {
    cpu::scan_backward(args, parallel_for);
  }
};
#endif

#ifdef LEAKYPAR_WITH_CUDA
struct Cuda {
  static DeviceFacts facts(const Tensor& tensor) { return cuda::device_facts(tensor.get_device_index()); }

  struct Guard : cuda::DeviceGuard {
    explicit Guard(const Tensor& tensor) : cuda::DeviceGuard(tensor.get_device_index()) {}
  };

  static cuda::Operand operand(const Tensor& matrix) {
    const bool as_it_lies = matrix.stride(1) == 1;
    const std::int64_t rows = matrix.size(as_it_lies ? 0 : 1), columns = matrix.size(as_it_lies ? 1 : 0);
    // A single row's stride means nothing, and cuBLAS asks for one of at least the row's length.
    const std::int64_t stride = rows > 1 ? matrix.stride(as_it_lies ? 0 : 1) : columns;
    return {static_cast<const float*>(matrix.data_ptr()), std::max<std::int64_t>(stride, 1), !as_it_lies};
  }

  static Tensor dense(const Tensor& matrix) {
    const bool one_stride_is_unit = matrix.stride(0) == 1 || matrix.stride(1) == 1;
    return one_stride_is_unit ? matrix : torch::stable::contiguous(matrix);
  }

  static void product(Tensor& out, const Tensor& a, const Tensor& b, bool allow_tf32) {
    if (out.scalar_type() != ScalarType::Float) return aten_product(out, a, b);
    if (out.numel() == 0) return;
    const Tensor left = dense(a), right = dense(b);
    cuda::product(static_cast<float*>(out.data_ptr()), operand(left), operand(right), out.size(0), out.size(1),
                  a.size(1), allow_tf32);
  }

  static std::int64_t time_chunks(Scan scan, std::int64_t T) {
    return scan == Scan::split ? split_backward.chunks(T) : 1;
  }

  static void check(cudaError_t error, const char* kernel, std::int64_t T, std::int64_t N, std::int64_t H) {
    STD_TORCH_CHECK(error == cudaSuccess, "leakypar: launching ", kernel, " for T = ", T, ", N = ", N, ", H = ", H,
                    " failed: ", cudaGetErrorString(error));
  }

  template <typename Scalar>
  static void scan(const ScanForward<Scalar>& args, Scan scan, const Tensor& like) {
    const Tensor workspace = new_empty(like, {cuda::scan_forward_workspace(args, scan)}, ScalarType::Byte);
    const cudaError_t error =
        cuda::scan_forward(args, scan, workspace.data_ptr(), cuda::current_stream(like.get_device_index()));
    check(error, "scan_forward", args.T, args.N, args.H);
  }

  template <typename Scalar>
  static void scan(const ScanBackward<Scalar>& args, Scan scan, const Tensor& like) {
    const Tensor workspace = new_empty(like, {cuda::scan_backward_workspace(args, scan)}, ScalarType::Byte);
    const cudaError_t error =
        cuda::scan_backward(args, scan, workspace.data_ptr(), cuda::current_stream(like.get_device_index()));
    check(error, "scan_backward", args.T, args.N, args.H);
  }
};
#endif

Scan forced(const std::string& scan, Scan chosen) {
  if (scan == "auto") return chosen;
  STD_TORCH_CHECK(scan == "lane" || scan == "split", "leakypar: scan is '", scan,
                  "', expected 'auto', 'lane' or 'split'");
  return scan == "lane" ? Scan::lane : Scan::split;
}

// A carry [N, H] in the state type, contiguous.
MaybeTensor state(const MaybeTensor& tensor, const char* name, std::int64_t N, std::int64_t H, ScalarType dtype) {
  if (!tensor) return std::nullopt;
  check_shape(*tensor, name, {N, H});
  return torch::stable::contiguous(torch::stable::to(*tensor, dtype));
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor> forward(Tensor x, Tensor weight, MaybeTensor bias_ih, MaybeTensor bias_hh,
                                           Tensor decay, Tensor threshold, Tensor gain, MaybeTensor initial,
                                           bool want_spikes, bool want_membrane, bool want_last, bool allow_tf32,
                                           std::string scan, std::int64_t chunk_steps) {
  STD_TORCH_CHECK(x.dim() == 3, "leakypar: x has shape ", shape(x), ", expected [T, N, C]");
  STD_TORCH_CHECK(weight.dim() == 2, "leakypar: weight has shape ", shape(weight), ", expected [H, C]");
  const std::int64_t T = x.size(0), N = x.size(1), C = x.size(2), H = weight.size(0);
  check_shape(weight, "weight", {H, C});
  check_like(weight, "weight", x, x.scalar_type());
  STD_TORCH_CHECK(chunk_steps >= 0, "leakypar: chunk_steps is ", chunk_steps, ", expected 0 (chosen) or more");
  const NoGrad no_grad;
  const typename Device::Guard guard(x);

  return with_element(x.scalar_type(), [&]<typename Scalar>(std::type_identity<Scalar>) {
    using Real = State<Scalar>;
    Plan plan = make_plan({T, N, C, H, static_cast<std::int64_t>(sizeof(Scalar))}, Device::facts(x));
    plan.scan_forward = forced(scan, plan.scan_forward);
    if (chunk_steps > 0) plan.chunk_steps = std::min(chunk_steps, std::max<std::int64_t>(T, 1));
    const bool chained = plan.chunk_steps < T;

    MaybeTensor spikes, membrane, last, buffer;
    if (want_spikes) spikes = new_empty(x, {T, N, H}, x.scalar_type());
    if (want_membrane) membrane = new_empty(x, {T, N, H}, x.scalar_type());
    if (want_last || chained) last = new_empty(x, {N, H}, dtype_of<Real>);
    if (!want_spikes && !want_membrane) buffer = new_empty(x, {plan.chunk_steps, N, H}, x.scalar_type());
    const Tensor& projected = membrane ? *membrane : (spikes ? *spikes : *buffer);
    const MaybeTensor first = state(initial, "initial", N, H, dtype_of<Real>);
    const Tensor weight_transposed = torch::stable::transpose(weight, 0, 1);

    ScanForward<Scalar> args = {};
    args.N = N;
    args.H = H;
    args.bias_ih = parameter(bias_ih, "bias_ih", H, x);
    args.bias_hh = parameter(bias_hh, "bias_hh", H, x);
    args.decay = parameter(decay, "decay", H, x);
    args.threshold = parameter(threshold, "threshold", H, x);
    args.gain = parameter(gain, "gain", H, x);
    args.initial = pointer<const Real>(first);
    args.last = pointer<Real>(last);
    for (std::int64_t t = 0; t < T; t += plan.chunk_steps) {
      const std::int64_t steps = std::min(plan.chunk_steps, T - t);
      Tensor from = torch::stable::narrow(x, 0, t, steps);
      Tensor into = torch::stable::narrow(const_cast<Tensor&>(projected), 0, buffer ? 0 : t, steps);
      Tensor u = matrix(into, steps * N, H);
      Device::product(u, matrix(from, steps * N, C), weight_transposed, allow_tf32);
      args.T = steps;
      args.u = static_cast<const Scalar*>(into.data_ptr());
      args.spikes = row<Scalar>(spikes, t * N * H);
      args.membrane = row<Scalar>(membrane, t * N * H);
      Device::scan(args, plan.scan_forward, x);
      args.initial = args.last;
    }
    if (want_last && T == 0) {
      if (first) {
        torch::stable::copy_(*last, *first);
      } else {
        torch::stable::zero_(*last);
      }
    }
    return std::make_tuple(spikes ? *spikes : nothing(x), membrane ? *membrane : nothing(x),
                           want_last ? *last : nothing(x));
  });
}

// The gradients of x, weight, either bias, decay, threshold, gain and initial, in this order; an empty tensor for each
// that is not wanted. That of x is wanted where weight is given, that of weight where x is. The last five leave in the
// state dtype: the caller knows what their parameters are.
template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    MaybeTensor grad_spikes, MaybeTensor grad_membrane, MaybeTensor grad_last, Tensor membrane, MaybeTensor x,
    MaybeTensor weight, Tensor decay, Tensor threshold, Tensor gain, MaybeTensor initial, std::int64_t surrogate,
    double p0, double p1, bool want_bias, bool want_decay, bool want_threshold, bool want_gain, bool want_initial,
    bool allow_tf32, std::string scan) {
  STD_TORCH_CHECK(membrane.dim() == 3, "leakypar: membrane has shape ", shape(membrane), ", expected [T, N, H]");
  STD_TORCH_CHECK(surrogate >= 0 && surrogate <= static_cast<std::int64_t>(SurrogateKind::sparse_fast_sigmoid),
                  "leakypar: surrogate is ", surrogate, ", expected a SurrogateKind");
  const std::int64_t T = membrane.size(0), N = membrane.size(1), H = membrane.size(2);
  const std::int64_t C = x ? x->size(-1) : (weight ? weight->size(-1) : 0);
  const auto trace = [&](const MaybeTensor& tensor, const char* name) -> MaybeTensor {
    if (!tensor) return std::nullopt;
    check_shape(*tensor, name, {T, N, H});
    check_like(*tensor, name, membrane, membrane.scalar_type());
    return torch::stable::contiguous(*tensor);
  };
  if (x) {
    check_shape(*x, "x", {T, N, C});
    check_like(*x, "x", membrane, membrane.scalar_type());
  }
  if (weight) {
    check_shape(*weight, "weight", {H, C});
    check_like(*weight, "weight", membrane, membrane.scalar_type());
  }
  const NoGrad no_grad;
  const typename Device::Guard guard(membrane);

  return with_element(membrane.scalar_type(), [&]<typename Scalar>(std::type_identity<Scalar>) {
    using Real = State<Scalar>;
    const Plan plan = make_plan({T, N, C, H, static_cast<std::int64_t>(sizeof(Scalar))}, Device::facts(membrane));
    const Scan chosen = forced(scan, plan.scan_backward);

    const MaybeTensor from_spikes = trace(grad_spikes, "grad_spikes");
    const MaybeTensor from_membrane = trace(grad_membrane, "grad_membrane");
    const MaybeTensor kept = trace(membrane, "membrane");
    const MaybeTensor from_last = state(grad_last, "grad_last", N, H, dtype_of<Real>);
    const MaybeTensor first = state(initial, "initial", N, H, dtype_of<Real>);
    Tensor grad_u = new_empty(membrane, {T, N, H}, membrane.scalar_type());
    MaybeTensor grad_initial;
    if (want_initial) grad_initial = new_empty(membrane, {N, H}, dtype_of<Real>);
    const auto partial = [&](bool wanted) -> MaybeTensor {
      if (!wanted) return std::nullopt;
      const std::array<std::int64_t, 3> sizes = {Device::time_chunks(chosen, T), N, H};
      if (T == 0) return torch::stable::new_zeros(membrane, sizes, dtype_of<Real>);
      return torch::stable::new_empty(membrane, sizes, dtype_of<Real>);
    };
    const MaybeTensor sum_bias = partial(want_bias), sum_decay = partial(want_decay);
    const MaybeTensor sum_threshold = partial(want_threshold), sum_gain = partial(want_gain);

    ScanBackward<Scalar> args = {};
    args.T = T;
    args.N = N;
    args.H = H;
    args.grad_spikes = pointer<const Scalar>(from_spikes);
    args.grad_membrane = pointer<const Scalar>(from_membrane);
    args.grad_last = pointer<const Real>(from_last);
    args.membrane = pointer<const Scalar>(kept);
    args.initial = pointer<const Real>(first);
    args.decay = parameter(decay, "decay", H, membrane);
    args.threshold = parameter(threshold, "threshold", H, membrane);
    args.gain = parameter(gain, "gain", H, membrane);
    args.surrogate = {static_cast<SurrogateKind>(surrogate), p0, p1};
    args.grad_u = static_cast<Scalar*>(grad_u.data_ptr());
    args.grad_initial = pointer<Real>(grad_initial);
    args.sum_bias = pointer<Real>(sum_bias);
    args.sum_decay = pointer<Real>(sum_decay);
    args.sum_threshold = pointer<Real>(sum_threshold);
    args.sum_gain = pointer<Real>(sum_gain);
    Device::scan(args, chosen, membrane);
    if (grad_initial && T == 0) {
      if (from_last) {
        torch::stable::copy_(*grad_initial, *from_last);
      } else {
        torch::stable::zero_(*grad_initial);
      }
    }

    // The reduction over chunks and batch, in an order that depends on the shape alone.
    const auto total = [&](const MaybeTensor& sum, const Tensor& parameter) {
      if (!sum) return nothing(membrane);
      const std::array<std::int64_t, 3> all = {0, 1, 2};
      const bool scalar = parameter.numel() == 1;
      const torch::headeronly::IntHeaderOnlyArrayRef dims(all.data(), scalar ? 3 : 2);
      return torch::stable::reshape(torch::stable::sum(*sum, dims), parameter.sizes());
    };
    const auto per_neuron = [&](const MaybeTensor& sum) {
      if (!sum) return nothing(membrane);
      const std::array<std::int64_t, 2> chunks_and_batch = {0, 1};
      return torch::stable::sum(*sum, chunks_and_batch);
    };

    const Tensor grad_rows = matrix(grad_u, T * N, H);
    Tensor grad_x = nothing(membrane), grad_weight = nothing(membrane);
    if (weight) {
      grad_x = new_empty(membrane, {T, N, C}, membrane.scalar_type());
      Tensor rows = matrix(grad_x, T * N, C);
      Device::product(rows, grad_rows, *weight, allow_tf32);
    }
    if (x) {
      grad_weight = new_empty(membrane, {H, C}, membrane.scalar_type());
      Device::product(grad_weight, torch::stable::transpose(grad_rows, 0, 1), matrix(*x, T * N, C), allow_tf32);
    }
    return std::make_tuple(grad_x, grad_weight, per_neuron(sum_bias), total(sum_decay, decay),
                           total(sum_threshold, threshold), total(sum_gain, gain),
                           grad_initial ? *grad_initial : nothing(membrane));
  });
}

}  // namespace
}  // namespace leakypar

STABLE_TORCH_LIBRARY(LEAKYPAR_NAMESPACE, library) {
  library.def(
      "forward(Tensor x, Tensor weight, Tensor? bias_ih, Tensor? bias_hh, Tensor decay, Tensor threshold, Tensor gain, "
      "Tensor? initial, bool want_spikes, bool want_membrane, bool want_last, bool allow_tf32, str scan, "
      "int chunk_steps) -> (Tensor, Tensor, Tensor)");
  library.def(
      "backward(Tensor? grad_spikes, Tensor? grad_membrane, Tensor? grad_last, Tensor membrane, Tensor? x, "
      "Tensor? weight, Tensor decay, Tensor threshold, Tensor gain, Tensor? initial, int surrogate, float p0, float "
      "p1, "
      "bool want_bias, bool want_decay, bool want_threshold, bool want_gain, bool want_initial, bool allow_tf32, "
      "str scan) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

#ifndef LEAKYPAR_EMULATED
STABLE_TORCH_LIBRARY_IMPL(LEAKYPAR_NAMESPACE, CPU, library) {
  library.impl("forward", TORCH_BOX(&leakypar::forward<leakypar::Cpu>));
  library.impl("backward", TORCH_BOX(&leakypar::backward<leakypar::Cpu>));
}
#endif

#ifdef LEAKYPAR_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(LEAKYPAR_NAMESPACE, LEAKYPAR_CUDA_KEY, library) {
  library.impl("forward", TORCH_BOX(&leakypar::forward<leakypar::Cuda>));
  library.impl("backward", TORCH_BOX(&leakypar::backward<leakypar::Cuda>));
}
#endif
