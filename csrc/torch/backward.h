// The backward operator: chunks of time from the last to the first, each scanned and fed to both products while the
// gradient of its projection lies in the cache.
#pragma once

#include <tuple>

#include "forward.h"

namespace leakypar {

// The membrane that a backward scan reads, a chunk at a time: what the forward kept, or rebuilt from x and a carry.
template <typename Device, typename Scalar, typename Projected>
class Membrane {
  using Real = State<Scalar>;

 public:
  // Kept: [T, N, H].
  Membrane(const Tensor& kept, const MaybeTensor& initial) : kept_(kept), initial_(initial) {}

  // Rebuilt: args holds the sizes and the neurons; checkpoints [chunks - 1, N, H] are the membrane between chunks.
  Membrane(const Input<Device, Scalar>& x, const Tensor& weight, const Tensor& checkpoints, const MaybeTensor& initial,
           const ScanForward<Scalar, Projected>& args, const Plan& plan, bool allow_tf32)
      : kept_(new_empty(weight, {std::min(plan.gemm_chunk, x.T()), args.N, args.H}, dtype_of<Scalar>)),
        initial_(initial),
        rebuild_(Rebuild{
            checkpoints, args, plan.forward,
            Projection<Device, Scalar, Projected>(x, weight, kept_, plan.gemm_chunk, plan.event_rate, allow_tf32)}) {}

  const Tensor& kept() const { return kept_; }

  // Sets the membrane and the one before it, for the steps [first, first + args.T), which begin chunk k.
  void chunk(ScanBackward<Scalar, Projected>& args, std::int64_t k, std::int64_t first) {
    const std::int64_t M = args.N * args.H;
    if (rebuild_) {
      args.initial_membrane =
          k == 0 ? pointer<const Real>(initial_) : pointer<const Real>(rebuild_->checkpoints, (k - 1) * M);
      ScanForward<Scalar, Projected> forward = rebuild_->args;
      forward.T = args.T;
      forward.u = rebuild_->project(first, args.T);
      forward.initial_membrane = args.initial_membrane;
      forward.lengths = args.lengths;
      forward.outputs.membrane = static_cast<Scalar*>(kept_.data_ptr());
      Device::scan(forward, rebuild_->method, kept_);
      args.membrane = forward.outputs.membrane;
      return;
    }
    args.membrane = static_cast<const Scalar*>(kept_.data_ptr()) + first * M;
    args.initial_membrane = pointer<const Real>(initial_);
    if (k == 0) return;
    before_ = converted(steps(kept_, first - 1, 1), dtype_of<Real>);
    args.initial_membrane = pointer<const Real>(before_);
  }

 private:
  struct Rebuild {
    Tensor checkpoints;
    ScanForward<Scalar, Projected> args;
    Method method;
    Projection<Device, Scalar, Projected> project;
  };

  Tensor kept_;  // where it is rebuilt, that of one chunk
  MaybeTensor initial_, before_;
  std::optional<Rebuild> rebuild_;
};

// The gradients of x, weight, decay, either bias, threshold, gain and initial_membrane, in this order; an empty tensor for
// each that is not wanted. The membrane is the forward's, or the checkpoints are, and then x, weight and the biases are read
// to rebuild it. In place of x, what the forward left of it as events; `features` says C then. Those of x and weight have their type, the rest the state type: the caller knows what their parameters are.
template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    MaybeTensor grad_spikes, MaybeTensor grad_membrane, MaybeTensor grad_final_membrane, MaybeTensor membrane,
    MaybeTensor checkpoints, MaybeTensor event_bits, MaybeTensor event_value, MaybeTensor x, MaybeTensor weight,
    Tensor decay, MaybeTensor bias_ih, MaybeTensor bias_hh, Tensor threshold, Tensor gain, MaybeTensor initial_membrane,
    MaybeTensor lengths, MaybeTensor seed, std::optional<double> lower, std::optional<double> upper, double dropout,
    std::int64_t surrogate, double p0, double p1, std::int64_t outputs, bool allow_tf32,
    std::optional<std::string> method, std::optional<std::int64_t> gemm_chunk, std::optional<double> event_rate,
    std::optional<double> backward_event_rate, std::optional<std::int64_t> features) {
  check_outputs(outputs, 7);
  const bool wants_x = wants(outputs, 0), wants_weight = wants(outputs, 1);
  STD_TORCH_CHECK(membrane.has_value() != checkpoints.has_value(),
                  "leakypar: expected either the membrane or the checkpoints");
  STD_TORCH_CHECK(x.has_value() || event_bits.has_value() || !(wants_weight || checkpoints),
                  "leakypar: neither x nor event_bits is given, expected [T, N, C]");
  STD_TORCH_CHECK(!event_bits || features.has_value(), "leakypar: features is not given, expected the size of x");
  STD_TORCH_CHECK(weight.has_value() || !(wants_x || checkpoints), "leakypar: weight is not given, expected [H, C]");
  STD_TORCH_CHECK(surrogate >= 0 && surrogate <= static_cast<std::int64_t>(SurrogateKind::sparse_fast_sigmoid),
                  "leakypar: surrogate is ", surrogate, ", expected a SurrogateKind");
  if (membrane) check_dimensions(*membrane, "membrane", {"T", "N", "H"});
  if (x) check_dimensions(*x, "x", {"T", "N", "C"});
  if (weight) check_dimensions(*weight, "weight", {"H", "C"});
  std::optional<Events> events;
  if (event_bits) events = events_from(*event_bits, event_value, *features);
  const Tensor& like = membrane ? *membrane : x ? *x : events->value;
  const Tensor& sized = membrane ? *membrane : x ? *x : events->bits;
  const std::int64_t T = sized.size(0), N = sized.size(1), H = membrane ? membrane->size(2) : weight->size(0);
  const std::int64_t C = events ? events->C : x ? x->size(2) : weight ? weight->size(1) : 0;
  if (events) {
    check_shape(events->bits, "event_bits", {T, N, event_words(C)});
    check_like(events->value, "event_value", like, like.scalar_type());
  }
  if (x) {
    check_shape(*x, "x", {T, N, C});
    check_like(*x, "x", like, like.scalar_type());
  }
  if (weight) {
    check_shape(*weight, "weight", {H, C});
    check_like(*weight, "weight", like, like.scalar_type());
  }
  const auto trace = [&](const MaybeTensor& tensor, const char* name) -> MaybeTensor {
    if (!tensor) return std::nullopt;
    check_shape(*tensor, name, {T, N, H});
    check_like(*tensor, name, like, like.scalar_type());
    return tensor->is_contiguous() ? *tensor : torch::stable::contiguous(*tensor);
  };
  const Bounds bounds = bounds_from(lower, upper);
  const NoGrad no_grad;
  const typename Device::Guard guard(like);

  return dispatch_types<Device>(like.scalar_type(), [&]<typename Scalar, typename Projected>(Types<Scalar, Projected>) {
    using Real = State<Scalar>;
    Request request = {};
    request.backward = method_from(method);
    request.backward_gemm_chunk = gemm_chunk;
    if (checkpoints) {
      request.forward = request.backward;  // the scan that rebuilds the membrane
      request.gemm_chunk = gemm_chunk;
    }
    request.recompute = checkpoints.has_value();
    request.event_rate = event_rate;
    request.backward_event_rate = backward_event_rate;
    const Plan plan = plan_for({T, N, C, H, precision_of<Scalar>(allow_tf32)}, Device::facts(like), request);
    const std::int64_t longest = plan.backward_gemm_chunk;
    const std::int64_t chunks = (T + longest - 1) / longest;
    if (checkpoints) {
      check_shape(*checkpoints, "checkpoints", {std::max<std::int64_t>(chunks - 1, 0), N, H});
      check_like(*checkpoints, "checkpoints", like, dtype_of<Real>);
      STD_TORCH_CHECK(checkpoints->is_contiguous(),
                      "leakypar: checkpoints is not contiguous, expected what forward left");
    }

    const MaybeTensor from_spikes = trace(grad_spikes, "grad_spikes");
    const MaybeTensor from_membrane = trace(grad_membrane, "grad_membrane");
    const MaybeTensor from_final = state(grad_final_membrane, "grad_final_membrane", N, H, dtype_of<Real>);
    const MaybeTensor first = state(initial_membrane, "initial_membrane", N, H, dtype_of<Real>);
    std::optional<Input<Device, Scalar>> input;
    if (events) {
      input.emplace(*events);
    } else if (x) {
      const double rate = checkpoints && plan.event_rate > 0 ? 1.0 : wants_weight ? plan.backward_event_rate : 0.0;
      input.emplace(*x, packed<Device, Scalar>(*x, false, rate));
    }
    Membrane<Device, Scalar, Projected> source = [&] {
      if (membrane) return Membrane<Device, Scalar, Projected>(*trace(membrane, "membrane"), first);
      ScanForward<Scalar, Projected> args = {};
      args.N = N;
      args.H = H;
      args.neurons = neurons_from(decay, bias_ih, bias_hh, threshold, gain, bounds, H, like);
      return Membrane<Device, Scalar, Projected>(*input, *weight, *checkpoints, first, args, plan, allow_tf32);
    }();

    const std::int64_t steps_at_once = std::min(longest, T);
    const Tensor grad_u = checkpoints && Device::template overwrites<Scalar, Projected>
                              ? source.kept()
                              : new_empty(like, {steps_at_once, N, H}, dtype_of<Projected>);
    MaybeTensor back_to_x, grad_x, grad_initial_membrane, carry;
    if (wants_x) {
      back_to_x = converted(*weight, dtype_of<Projected>);
      const bool computed = N * H > 0;  // a product over no neurons is zeros that nobody writes
      grad_x = (computed ? new_empty : new_zeros)(like, {T, N, C}, like.scalar_type());
    }
    if (wants(outputs, 6)) grad_initial_membrane = new_empty(like, {N, H}, dtype_of<Real>);
    if (chunks > 1) carry = new_empty(like, {N, H}, dtype_of<Real>);
    WeightGradient<Device, Scalar, Projected> grad_weight(like, H, C, plan.backward_event_rate, allow_tf32);
    const std::int64_t tiles = Device::time_tiles(plan.backward, steps_at_once);
    const auto partial = [&](int result) -> MaybeTensor {
      if (!wants(outputs, result)) return std::nullopt;
      return new_zeros(like, {chunks * tiles, N, H}, dtype_of<Real>);
    };
    const MaybeTensor sum_decay = partial(2), sum_bias = partial(3), sum_threshold = partial(4), sum_gain = partial(5);

    ScanBackward<Scalar, Projected> args = {};
    args.N = N;
    args.H = H;
    args.grad_final_membrane = pointer<const Real>(from_final);
    args.neurons = neurons_from(decay, std::nullopt, std::nullopt, threshold, gain, bounds, H, like);
    args.surrogate = {static_cast<SurrogateKind>(surrogate), p0, p1};
    args.grad_u = static_cast<Projected*>(grad_u.data_ptr());
    for (std::int64_t k = N * H > 0 ? chunks - 1 : -1; k >= 0; --k) {
      const std::int64_t t = k * longest;
      args.T = std::min(longest, T - t);
      args.grad_spikes = pointer<const Scalar>(from_spikes, t * N * H);
      args.grad_membrane = pointer<const Scalar>(from_membrane, t * N * H);
      args.dropout = dropout_from(seed, dropout, t * N * H, like);
      args.lengths = lengths_from(lengths, t, N, like);
      args.grad_initial_membrane = k > 0 ? pointer<Real>(carry) : pointer<Real>(grad_initial_membrane);
      args.sum_bias = pointer<Real>(sum_bias, k * tiles * N * H);
      args.sum_decay = pointer<Real>(sum_decay, k * tiles * N * H);
      args.sum_threshold = pointer<Real>(sum_threshold, k * tiles * N * H);
      args.sum_gain = pointer<Real>(sum_gain, k * tiles * N * H);
      source.chunk(args, k, t);
      Device::scan(args, plan.backward, like);
      args.grad_final_membrane = args.grad_initial_membrane;

      const Tensor grad_rows = matrix(steps(grad_u, 0, args.T));
      if (wants_x) {
        const Tensor rows = matrix(steps(*grad_x, t, args.T));
        if constexpr (std::is_same_v<Projected, Scalar>) {
          Device::product(rows, grad_rows, *back_to_x, false, allow_tf32);
        } else {
          const Tensor wide = new_empty(like, {args.T * N, C}, dtype_of<Projected>);
          Device::product(wide, grad_rows, *back_to_x, false, allow_tf32);
          torch::stable::copy_(const_cast<Tensor&>(rows), wide);
        }
      }
      if (wants_weight) {
        grad_weight.add(grad_rows, *input, t, args.T);
      }
    }
    if (grad_initial_membrane && T == 0) {
      if (from_final) {
        torch::stable::copy_(*grad_initial_membrane, *from_final);
      } else {
        torch::stable::zero_(*grad_initial_membrane);
      }
    }

    // The reduction over time tiles and batch, in an order that depends on the shape alone. A parameter of one value, which
    // all neurons share, is summed over them too.
    const auto total = [&](const MaybeTensor& sum, std::int64_t values) -> MaybeTensor {
      if (!sum) return std::nullopt;
      const std::array<std::int64_t, 3> all = {0, 1, 2};
      return torch::stable::sum(*sum, torch::headeronly::IntHeaderOnlyArrayRef(all.data(), values == 1 ? 3 : 2));
    };
    const auto shaped = [&](const MaybeTensor& sum, const Tensor& parameter) -> MaybeTensor {
      const MaybeTensor summed = total(sum, parameter.numel());
      return summed ? MaybeTensor(torch::stable::reshape(*summed, parameter.sizes())) : std::nullopt;
    };
    const MaybeTensor weight_gradient = wants_weight ? MaybeTensor(grad_weight.result()) : std::nullopt;
    const auto returned = [&](const MaybeTensor& tensor) { return or_empty(tensor, like); };
    return std::make_tuple(returned(grad_x), returned(weight_gradient), returned(shaped(sum_decay, decay)),
                           returned(total(sum_bias, 0)), returned(shaped(sum_threshold, threshold)),
                           returned(shaped(sum_gain, gain)), returned(grad_initial_membrane));
  });
}

}  // namespace leakypar
