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

  // Rebuilt: args holds the neurons' parameters; carries [chunks - 1, N, H] are what lies between chunks.
  Membrane(const Tensor& x, const Tensor& weight, const Tensor& carries, const MaybeTensor& initial,
           const ScanForward<Scalar, Projected>& args, Scan scan, std::int64_t longest, bool allow_tf32)
      : kept_(new_empty(x, {std::min(longest, x.size(0)), args.N, args.H}, x.scalar_type())),
        initial_(initial),
        rebuild_(Rebuild{carries, args, scan,
                         Projection<Device, Scalar, Projected>(x, weight, kept_, longest, allow_tf32)}) {}

  const Tensor& kept() const { return kept_; }

  // Sets the membrane and the one before it, for the steps [first, first + args.T), which begin chunk k.
  void chunk(ScanBackward<Scalar, Projected>& args, std::int64_t k, std::int64_t first) {
    const std::int64_t M = args.N * args.H;
    if (rebuild_) {
      args.initial = k == 0 ? pointer<const Real>(initial_) : row<const Real>(rebuild_->carries, (k - 1) * M);
      ScanForward<Scalar, Projected> forward = rebuild_->args;
      forward.T = args.T;
      forward.u = rebuild_->project(first, args.T);
      forward.initial = args.initial;
      forward.membrane = static_cast<Scalar*>(kept_.data_ptr());
      Device::scan(forward, rebuild_->scan, kept_);
      args.membrane = forward.membrane;
      return;
    }
    args.membrane = static_cast<const Scalar*>(kept_.data_ptr()) + first * M;
    args.initial = pointer<const Real>(initial_);
    if (k == 0) return;
    before_ = converted(steps(kept_, first - 1, 1), dtype_of<Real>);
    args.initial = pointer<const Real>(before_);
  }

 private:
  struct Rebuild {
    MaybeTensor carries;
    ScanForward<Scalar, Projected> args;
    Scan scan;
    Projection<Device, Scalar, Projected> project;
  };

  Tensor kept_;  // where it is rebuilt, that of one chunk
  MaybeTensor initial_, before_;
  std::optional<Rebuild> rebuild_;
};

// The gradients of x, weight, either bias, decay, threshold, gain and initial, in this order; an empty tensor for each
// that is not wanted. The membrane is the forward's, or the carries are, and then x, weight and the biases are read to
// rebuild it. The last five gradients leave in the state dtype: the caller knows what their parameters are.
template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    MaybeTensor grad_spikes, MaybeTensor grad_membrane, MaybeTensor grad_last, MaybeTensor membrane,
    MaybeTensor carries, MaybeTensor x, MaybeTensor weight, MaybeTensor bias_ih, MaybeTensor bias_hh, Tensor decay,
    Tensor threshold, Tensor gain, MaybeTensor initial, MaybeTensor seed, double dropout, std::int64_t surrogate,
    double p0, double p1, bool want_x, bool want_weight, bool want_bias, bool want_decay, bool want_threshold,
    bool want_gain, bool want_initial, bool allow_tf32, std::string scan, std::int64_t chunk_steps) {
  STD_TORCH_CHECK(membrane.has_value() != carries.has_value(), "leakypar: expected the membrane or the carries");
  STD_TORCH_CHECK(x.has_value() || !(want_weight || carries), "leakypar: x is not given, expected [T, N, C]");
  STD_TORCH_CHECK(weight.has_value() || !(want_x || carries), "leakypar: weight is not given, expected [H, C]");
  STD_TORCH_CHECK(surrogate >= 0 && surrogate <= static_cast<std::int64_t>(SurrogateKind::sparse_fast_sigmoid),
                  "leakypar: surrogate is ", surrogate, ", expected a SurrogateKind");
  if (membrane) check_dimensions(*membrane, "membrane", {"T", "N", "H"});
  if (x) check_dimensions(*x, "x", {"T", "N", "C"});
  if (weight) check_dimensions(*weight, "weight", {"H", "C"});
  const Tensor& like = membrane ? *membrane : *x;
  const std::int64_t T = like.size(0), N = like.size(1), H = membrane ? membrane->size(2) : weight->size(0);
  const std::int64_t C = x ? x->size(2) : weight ? weight->size(1) : 0;
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
  const NoGrad no_grad;
  const typename Device::Guard guard(like);

  return with_types<Device>(like.scalar_type(), [&]<typename Scalar, typename Projected>(Types<Scalar, Projected>) {
    using Real = State<Scalar>;
    const Plan plan = make_plan({T, N, C, H, static_cast<std::int64_t>(sizeof(Scalar))}, Device::facts(like));
    const Scan chosen = forced(scan, plan.scan_backward);
    const std::int64_t planned = forced(chunk_steps, T, plan.backward_chunk_steps);
    const std::int64_t longest = carries ? recompute_steps(T, N, sizeof(Scalar)) : planned;
    const std::int64_t chunks = (T + longest - 1) / longest;
    if (carries) check_shape(*carries, "carries", {std::max<std::int64_t>(chunks - 1, 0), N, H});

    const MaybeTensor from_spikes = trace(grad_spikes, "grad_spikes");
    const MaybeTensor from_membrane = trace(grad_membrane, "grad_membrane");
    const MaybeTensor from_last = state(grad_last, "grad_last", N, H, dtype_of<Real>);
    const MaybeTensor first = state(initial, "initial", N, H, dtype_of<Real>);
    Membrane<Device, Scalar, Projected> source = [&] {
      if (membrane) return Membrane<Device, Scalar, Projected>(*trace(membrane, "membrane"), first);
      ScanForward<Scalar, Projected> args = {};
      args.N = N;
      args.H = H;
      args.bias_ih = parameter(bias_ih, "bias_ih", H, like);
      args.bias_hh = parameter(bias_hh, "bias_hh", H, like);
      args.decay = parameter(decay, "decay", H, like);
      args.threshold = parameter(threshold, "threshold", H, like);
      args.gain = parameter(gain, "gain", H, like);
      return Membrane<Device, Scalar, Projected>(*x, *weight, *carries, first, args, forced(scan, plan.scan_forward),
                                                 longest, allow_tf32);
    }();

    const std::int64_t rows_at_once = std::min(longest, T);
    const Tensor grad_u = carries && Device::template overwrites<Scalar, Projected>
                              ? source.kept()
                              : new_empty(like, {rows_at_once, N, H}, dtype_of<Projected>);
    MaybeTensor back_to_x, grad_x, grad_initial, carry;
    if (want_x) {
      back_to_x = converted(*weight, dtype_of<Projected>);
      grad_x = new_empty(like, {T, N, C}, like.scalar_type());
    }
    if (want_initial) grad_initial = new_empty(like, {N, H}, dtype_of<Real>);
    if (chunks > 1) carry = new_empty(like, {N, H}, dtype_of<Real>);
    ProductSum<Device, Scalar, Projected> grad_weight(like, H, C, allow_tf32);
    const auto partial = [&](bool wanted) -> MaybeTensor {
      if (!wanted) return std::nullopt;
      return new_zeros(like, {Device::time_chunks(chosen, rows_at_once), N, H}, dtype_of<Real>);
    };
    const MaybeTensor sum_bias = partial(want_bias), sum_decay = partial(want_decay);
    const MaybeTensor sum_threshold = partial(want_threshold), sum_gain = partial(want_gain);

    ScanBackward<Scalar, Projected> args = {};
    args.N = N;
    args.H = H;
    args.grad_last = pointer<const Real>(from_last);
    args.decay = parameter(decay, "decay", H, like);
    args.threshold = parameter(threshold, "threshold", H, like);
    args.gain = parameter(gain, "gain", H, like);
    args.surrogate = {static_cast<SurrogateKind>(surrogate), p0, p1};
    args.grad_u = static_cast<Projected*>(grad_u.data_ptr());
    args.sum_bias = pointer<Real>(sum_bias);
    args.sum_decay = pointer<Real>(sum_decay);
    args.sum_threshold = pointer<Real>(sum_threshold);
    args.sum_gain = pointer<Real>(sum_gain);
    for (std::int64_t k = chunks - 1; k >= 0; --k) {
      const std::int64_t t = k * longest;
      args.T = std::min(longest, T - t);
      args.grad_spikes = row<const Scalar>(from_spikes, t * N * H);
      args.grad_membrane = row<const Scalar>(from_membrane, t * N * H);
      args.dropout = dropout_from(seed, dropout, t * N * H, like);
      args.grad_initial = k > 0 ? pointer<Real>(carry) : pointer<Real>(grad_initial);
      source.chunk(args, k, t);
      Device::scan(args, chosen, like);
      args.grad_last = args.grad_initial;

      const Tensor grad_rows = matrix(steps(grad_u, 0, args.T));
      if (want_x) {
        const Tensor rows = matrix(steps(*grad_x, t, args.T));
        if constexpr (std::is_same_v<Projected, Scalar>) {
          Device::product(rows, grad_rows, *back_to_x, false, allow_tf32);
        } else {
          const Tensor wide = new_empty(like, {args.T * N, C}, dtype_of<Projected>);
          Device::product(wide, grad_rows, *back_to_x, false, allow_tf32);
          torch::stable::copy_(const_cast<Tensor&>(rows), wide);
        }
      }
      if (want_weight) {
        const Tensor from = converted(matrix(steps(*x, t, args.T)), dtype_of<Projected>);
        grad_weight.add(transposed(grad_rows), from);
      }
    }
    if (grad_initial && T == 0) {
      if (from_last) {
        torch::stable::copy_(*grad_initial, *from_last);
      } else {
        torch::stable::zero_(*grad_initial);
      }
    }

    // The reduction over chunks and batch, in an order that depends on the shape alone.
    const auto total = [&](const MaybeTensor& sum, const Tensor& parameter) {
      if (!sum) return nothing(like);
      const std::array<std::int64_t, 3> all = {0, 1, 2};
      const bool scalar = parameter.numel() == 1;
      const torch::headeronly::IntHeaderOnlyArrayRef dims(all.data(), scalar ? 3 : 2);
      return torch::stable::reshape(torch::stable::sum(*sum, dims), parameter.sizes());
    };
    const auto per_neuron = [&](const MaybeTensor& sum) {
      if (!sum) return nothing(like);
      const std::array<std::int64_t, 2> chunks_and_batch = {0, 1};
      return torch::stable::sum(*sum, chunks_and_batch);
    };
    const auto or_nothing = [&](const MaybeTensor& tensor) { return tensor ? *tensor : nothing(like); };
    return std::make_tuple(or_nothing(grad_x), want_weight ? grad_weight.result() : nothing(like), per_neuron(sum_bias),
                           total(sum_decay, decay), total(sum_threshold, threshold), total(sum_gain, gain),
                           or_nothing(grad_initial));
  });
}

}  // namespace leakypar
