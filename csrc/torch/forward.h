// The forward operator: project_scan, one kernel from the input to the spikes; or a chunk of time steps at a time, projected
// by a plain matrix product and scanned while it lies in the cache, with the carry passed on.
#pragma once

#include <algorithm>
#include <tuple>

#include "products.h"

namespace leakypar {

// What a user forces of one direction. Only a forward has tiles.
inline std::optional<Method> method_from(const std::optional<std::string>& name) {
  return name ? std::optional(method_from(*name)) : std::nullopt;
}

// Returns spikes and membrane [T, N, H], the checkpoints [chunks - 1, N, H], which are the membrane between chunks and all
// that a backward which recomputes it needs, the final membrane [N, H], and x as bits with the value of its ones, which a
// backward may read in its place; an empty tensor for each that is not wanted, or that an x which is not made of events does
// not have. binary_input promises that it is.
template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    Tensor x, Tensor weight, Tensor decay, MaybeTensor bias_ih, MaybeTensor bias_hh, Tensor threshold, Tensor gain,
    MaybeTensor initial_membrane, MaybeTensor lengths, MaybeTensor seed, std::optional<double> lower,
    std::optional<double> upper, double dropout, std::int64_t outputs, bool allow_tf32,
    std::optional<std::string> method, std::optional<std::int64_t> gemm_chunk,
    std::optional<std::vector<std::int64_t>> tiles, std::optional<double> event_rate, bool binary_input) {
  check_outputs(outputs, 5);
  check_dimensions(x, "x", {"T", "N", "C"});
  check_dimensions(weight, "weight", {"H", "C"});
  const std::int64_t T = x.size(0), N = x.size(1), C = x.size(2), H = weight.size(0);
  check_shape(weight, "weight", {H, C});
  check_like(weight, "weight", x, x.scalar_type());
  const bool keeps_checkpoints = wants(outputs, 2), keeps_events = wants(outputs, 4);
  const NoGrad no_grad;
  const typename Device::Guard guard(x);

  return dispatch_types<Device>(x.scalar_type(), [&]<typename Scalar, typename Projected>(Types<Scalar, Projected>) {
    using Real = State<Scalar>;
    Request request = {};
    request.forward = method_from(method);
    request.gemm_chunk = gemm_chunk;
    if (tiles) request.tiles = tiles_from(*tiles);
    if (keeps_checkpoints) request.backward_gemm_chunk = gemm_chunk;
    request.recompute = keeps_checkpoints;
    request.event_rate = event_rate;
    const Workload work = {T, N, C, H, precision_of<Scalar>(allow_tf32)};
    const Plan plan = plan_for(work, Device::facts(x), request);
    const std::int64_t chunks = (T + plan.gemm_chunk - 1) / plan.gemm_chunk;
    // A backward that projects again must choose its products as this forward does: chunk by chunk, whatever the share of
    // ones in all of x.
    const bool in_any_case = keeps_checkpoints && (keeps_events || plan.event_rate > 0);
    const auto events = packed<Device, Scalar>(x, binary_input && (keeps_events || Device::finds_events),
                                               in_any_case ? 1.0 : plan.event_rate);

    MaybeTensor spikes, membrane, checkpoints, carry, final_membrane;
    if (wants(outputs, 0)) spikes = new_empty(x, {T, N, H}, x.scalar_type());
    if (wants(outputs, 1)) membrane = new_empty(x, {T, N, H}, x.scalar_type());
    if (keeps_checkpoints) checkpoints = new_empty(x, {std::max<std::int64_t>(chunks - 1, 0), N, H}, dtype_of<Real>);
    if (!keeps_checkpoints && chunks > 1) carry = new_empty(x, {N, H}, dtype_of<Real>);
    if (wants(outputs, 3)) final_membrane = new_empty(x, {N, H}, dtype_of<Real>);
    const MaybeTensor first = state(initial_membrane, "initial_membrane", N, H, dtype_of<Real>);

    const auto in_chunks = [&](auto args, const auto& run) {
      args.N = N;
      args.H = H;
      args.neurons = neurons_from(decay, bias_ih, bias_hh, threshold, gain, bounds_from(lower, upper), H, x);
      args.initial_membrane = pointer<const Real>(first);
      for (std::int64_t k = 0; k < (N * H > 0 ? chunks : 0); ++k) {
        const std::int64_t t = k * plan.gemm_chunk;
        args.T = std::min(plan.gemm_chunk, T - t);
        Real* const out = k + 1 == chunks ? pointer<Real>(final_membrane)
                          : checkpoints   ? pointer<Real>(checkpoints, k * N * H)
                                          : pointer<Real>(carry);
        args.outputs = {pointer<Scalar>(spikes, t * N * H), pointer<Scalar>(membrane, t * N * H), out};
        args.dropout = dropout_from(seed, dropout, t * N * H, x);
        args.lengths = lengths_from(lengths, t, N, x);
        run(args, t);
        args.initial_membrane = out;
      }
    };
    if (plan.forward == Method::project_scan) {
      if constexpr (Device::template has_project_scan<Scalar>) {
        const Tensor input = with_dense_rows(x), operand = with_dense_rows(weight);
        ProjectScan<Scalar> args = {};
        args.C = C;
        args.x_step = input.stride(0);
        args.x_row = input.stride(1);
        args.weight = static_cast<const Scalar*>(operand.data_ptr());
        args.weight_row = operand.stride(0);
        in_chunks(args, [&](ProjectScan<Scalar>& chunk, std::int64_t t) {
          if (!plan.tiles) return;  // without rows or neurons there is nothing to compute
          chunk.x = static_cast<const Scalar*>(input.data_ptr()) + t * chunk.x_step;
          const Workload part = {chunk.T, N, C, H, work.precision};
          Device::project_scan(chunk, fitted(*plan.tiles, part), x);
        });
      }
    } else {
      Projection<Device, Scalar, Projected> project(Input<Device, Scalar>(x, events), weight,
                                                    membrane ? membrane : spikes, plan.gemm_chunk, plan.event_rate,
                                                    allow_tf32);
      using Args = ScanForward<Scalar, Projected>;
      in_chunks(Args{}, [&](Args& chunk, std::int64_t t) {
        chunk.u = project(t, chunk.T);
        Device::scan(chunk, plan.forward, x);
      });
    }
    if (final_membrane && T == 0) {
      if (first) {
        torch::stable::copy_(*final_membrane, *first);
      } else {
        torch::stable::zero_(*final_membrane);
      }
    }
    const auto kept = [&](Tensor Events::* part) -> MaybeTensor {
      return events && keeps_events ? MaybeTensor((*events).*part) : std::nullopt;
    };
    return std::make_tuple(or_empty(spikes, x), or_empty(membrane, x), or_empty(checkpoints, x),
                           or_empty(final_membrane, x), or_empty(kept(&Events::bits), x),
                           or_empty(kept(&Events::value), x));
  });
}

// The forward of a call whose graph is kept, by torch.export: it also names all that the backward needs, so that Python can
// register the derivative (leakypar/layer_operator.py) and a program without Python can still run it.
template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> layer(
    Tensor x, Tensor weight, Tensor decay, MaybeTensor bias_ih, MaybeTensor bias_hh, Tensor threshold, Tensor gain,
    MaybeTensor initial_membrane, MaybeTensor lengths, MaybeTensor seed, std::optional<double> lower,
    std::optional<double> upper, double dropout, std::int64_t /* surrogate */, double /* p0 */, double /* p1 */,
    std::int64_t outputs, bool allow_tf32, std::optional<std::string> method, std::optional<std::int64_t> gemm_chunk,
    std::optional<std::vector<std::int64_t>> tiles, std::optional<double> event_rate,
    std::optional<std::string> /* backward_method */, std::optional<std::int64_t> /* backward_gemm_chunk */,
    std::optional<double> /* backward_event_rate */) {
  const auto [spikes, membrane, checkpoints, final_membrane, bits, value] =
      forward<Device>(x, weight, decay, bias_ih, bias_hh, threshold, gain, initial_membrane, lengths, seed, lower,
                      upper, dropout, outputs, allow_tf32, method, gemm_chunk, tiles, event_rate, false);
  return {spikes, membrane, checkpoints, final_membrane};
}

}  // namespace leakypar
