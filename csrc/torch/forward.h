// The forward operator. Fused: one kernel from the input to the spikes. Chunked: project a chunk of time steps by a plain
// matrix product, scan it while it lies in the cache, pass the carry on.
#pragma once

#include <algorithm>
#include <tuple>

#include "../cost.h"
#include "products.h"

namespace leakypar {

inline Scan forced(const std::string& scan, Scan chosen) {
  if (scan == "auto" || scan == "fused") return chosen;
  STD_TORCH_CHECK(scan == "lane" || scan == "split", "leakypar: scan is '", scan,
                  "', expected 'auto', 'lane', 'split' or, forward, 'fused'");
  return scan == "lane" ? Scan::lane : Scan::split;
}

inline std::int64_t forced(std::int64_t chunk_steps, std::int64_t T, std::int64_t chosen) {
  STD_TORCH_CHECK(chunk_steps >= 0, "leakypar: chunk_steps is ", chunk_steps, ", expected 0 (chosen) or more");
  return chunk_steps > 0 ? std::min(chunk_steps, std::max<std::int64_t>(T, 1)) : chosen;
}

// The tiles of the fused kernel for a chunk: chosen, or forced as (columns, batch_rows, stages, resident,
// blocks_per_group).
inline ProjectPlan tiles_for(const Problem& problem, const DeviceFacts& device,
                             const std::vector<std::int64_t>& forced) {
  ProjectPlan plan = {};
  if (forced.empty()) {
    plan = make_project_plan(problem, device);
    STD_TORCH_CHECK(plan.stages > 0 || problem.N * problem.H == 0,
                    "leakypar: the fused kernel needs more shared memory than the device's ",
                    device.shared_bytes_of_block, " bytes");
    return plan;
  }
  const auto one_of = [&](std::size_t at, const char* name, const std::vector<std::int64_t>& allowed) {
    STD_TORCH_CHECK(std::find(allowed.begin(), allowed.end(), forced[at]) != allowed.end(), "leakypar: tiles has ",
                    name, " ", forced[at], ", expected one of ", listed(allowed));
    return forced[at];
  };
  STD_TORCH_CHECK(forced.size() == 5, "leakypar: tiles has ", forced.size(),
                  " values, expected columns, batch_rows, stages, resident and blocks_per_group");
  plan.wide = one_of(0, "columns", {64, 128}) == 128;
  plan.batch_rows = static_cast<std::int32_t>(one_of(1, "batch_rows", {1, 2, 4, 8}));
  plan.stages = static_cast<std::int32_t>(one_of(2, "stages", {1, 2, 3, 4}));
  plan.resident = one_of(3, "resident", {0, 1}) == 1;
  plan.blocks_per_group = forced[4];
  STD_TORCH_CHECK(forced[4] > 0, "leakypar: tiles has blocks_per_group ", forced[4], ", expected 1 or more");
  plan = fitted(plan, problem);
  const std::int64_t slices = ProjectPlan::slices(problem.C, problem.element_bytes);
  STD_TORCH_CHECK(plan.stages > 1 || slices <= 1,
                  "leakypar: tiles has stages 1, expected 2 or more where C = ", problem.C, " takes ", slices,
                  " slices");
  const std::int64_t bytes = plan.shared_bytes(problem.C, problem.element_bytes);
  STD_TORCH_CHECK(bytes <= device.shared_bytes_of_block, "leakypar: tiles of columns ", forced[0], ", batch_rows ",
                  forced[1], ", stages ", forced[2], ", resident ", forced[3], " take ", bytes,
                  " bytes of shared memory, a block of the device has ", device.shared_bytes_of_block);
  return plan;
}

// An x [T, N, C] or weight [H, C] whose last dimension is contiguous; a copy only where it is not.
inline Tensor with_dense_rows(const Tensor& tensor) {
  const std::int64_t last = tensor.dim() - 1;
  return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor : torch::stable::contiguous(tensor);
}

// Whether project_scan computes in the precision that is asked for. Its float32 is TF32.
template <typename Device, typename Scalar>
constexpr bool fusible(bool allow_tf32) {
  if constexpr (requires { Device::template fuses<Scalar>; }) {
    return Device::template fuses<Scalar> && (allow_tf32 || !std::is_same_v<Scalar, float>);
  }
  return false;
}

// Returns spikes and membrane [T, N, H], the carries between chunks [chunks - 1, N, H], which a backward that recomputes
// the membrane starts from, and the last membrane [N, H]; an empty tensor for each that is not wanted.
template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(Tensor x, Tensor weight, MaybeTensor bias_ih, MaybeTensor bias_hh,
                                                   Tensor decay, Tensor threshold, Tensor gain, MaybeTensor initial,
                                                   MaybeTensor seed, double dropout, bool want_spikes,
                                                   bool want_membrane, bool want_carries, bool want_last,
                                                   bool allow_tf32, std::string scan, std::int64_t chunk_steps,
                                                   std::vector<std::int64_t> tiles) {
  check_dimensions(x, "x", {"T", "N", "C"});
  check_dimensions(weight, "weight", {"H", "C"});
  const std::int64_t T = x.size(0), N = x.size(1), C = x.size(2), H = weight.size(0);
  check_shape(weight, "weight", {H, C});
  check_like(weight, "weight", x, x.scalar_type());
  const NoGrad no_grad;
  const typename Device::Guard guard(x);

  return with_types<Device>(x.scalar_type(), [&]<typename Scalar, typename Projected>(Types<Scalar, Projected>) {
    using Real = State<Scalar>;
    const Problem problem = {T, N, C, H, static_cast<std::int64_t>(sizeof(Scalar))};
    const DeviceFacts& facts = Device::facts(x);
    const Plan plan = make_plan(problem, facts);
    const bool can_fuse = fusible<Device, Scalar>(allow_tf32);
    STD_TORCH_CHECK(scan != "fused" || can_fuse,
                    "leakypar: the fused kernel computes float16, bfloat16 and, where TF32 ",
                    "is allowed, float32 on a CUDA device; x has dtype ", torch::headeronly::toString(x.scalar_type()));
    // A backward that recomputes the membrane projects in chunks, and must find the membrane that the forward had.
    STD_TORCH_CHECK(scan != "fused" || !want_carries,
                    "leakypar: the fused kernel keeps no carries for a backward that ", "recomputes the membrane");
    const bool may_fuse = can_fuse && !want_carries;
    const bool fused = scan == "fused" ||
                       (scan == "auto" && may_fuse && prefers_fused(problem, facts, make_project_plan(problem, facts)));
    const Scan chosen = forced(scan, plan.scan_forward);
    const std::int64_t planned = forced(chunk_steps, T, fused ? std::max<std::int64_t>(T, 1) : plan.chunk_steps);
    const std::int64_t longest = want_carries ? recompute_steps(T, N, sizeof(Scalar)) : planned;
    const std::int64_t chunks = (T + longest - 1) / longest;

    MaybeTensor spikes, membrane, carries, carry, last;
    if (want_spikes) spikes = new_empty(x, {T, N, H}, x.scalar_type());
    if (want_membrane) membrane = new_empty(x, {T, N, H}, x.scalar_type());
    if (want_carries) carries = new_empty(x, {std::max<std::int64_t>(chunks - 1, 0), N, H}, dtype_of<Real>);
    if (!want_carries && chunks > 1) carry = new_empty(x, {N, H}, dtype_of<Real>);
    if (want_last) last = new_empty(x, {N, H}, dtype_of<Real>);
    const MaybeTensor first = state(initial, "initial", N, H, dtype_of<Real>);

    const auto in_chunks = [&](auto args, const auto& run) {
      args.N = N;
      args.H = H;
      args.bias_ih = parameter(bias_ih, "bias_ih", H, x);
      args.bias_hh = parameter(bias_hh, "bias_hh", H, x);
      args.decay = parameter(decay, "decay", H, x);
      args.threshold = parameter(threshold, "threshold", H, x);
      args.gain = parameter(gain, "gain", H, x);
      args.initial = pointer<const Real>(first);
      for (std::int64_t k = 0; k < chunks; ++k) {
        const std::int64_t t = k * longest;
        args.T = std::min(longest, T - t);
        args.spikes = row<Scalar>(spikes, t * N * H);
        args.membrane = row<Scalar>(membrane, t * N * H);
        args.dropout = dropout_from(seed, dropout, t * N * H, x);
        const bool final = k + 1 == chunks;
        args.last = final ? pointer<Real>(last) : carries ? row<Real>(carries, k * N * H) : pointer<Real>(carry);
        run(args, t);
        args.initial = args.last;
      }
    };
    if (fused) {
      if constexpr (fusible<Device, Scalar>(true)) {
        const Tensor input = with_dense_rows(x), operand = with_dense_rows(weight);
        ProjectScan<Scalar> args = {};
        args.C = C;
        args.x_step = input.stride(0);
        args.x_row = input.stride(1);
        args.weight = static_cast<const Scalar*>(operand.data_ptr());
        args.weight_row = operand.stride(0);
        in_chunks(args, [&](ProjectScan<Scalar>& chunk, std::int64_t t) {
          chunk.x = static_cast<const Scalar*>(input.data_ptr()) + t * chunk.x_step;
          const Problem part = {chunk.T, N, C, H, problem.element_bytes};
          Device::project_scan(chunk, tiles_for(part, facts, tiles), x);
        });
      }
    } else {
      const Projection<Device, Scalar, Projected> project(x, weight, membrane ? membrane : spikes, longest, allow_tf32);
      using Args = ScanForward<Scalar, Projected>;
      in_chunks(Args{}, [&](Args& chunk, std::int64_t t) {
        chunk.u = project(t, chunk.T);
        Device::scan(chunk, chosen, x);
      });
    }
    if (want_last && T == 0) {
      if (first) {
        torch::stable::copy_(*last, *first);
      } else {
        torch::stable::zero_(*last);
      }
    }
    const auto or_nothing = [&](const MaybeTensor& tensor) { return tensor ? *tensor : nothing(x); };
    return std::make_tuple(or_nothing(spikes), or_nothing(membrane), or_nothing(carries), or_nothing(last));
  });
}

}  // namespace leakypar
