// The scan's gradient, for every channel of [T, M], M = N * H, from the last step to the first. With
// v_t = f_t h_t - threshold, f_t = 1 or the factor of dropout (math/dropout.h), and r_T = grad_final_membrane,
//
//   g_t = f_t dL/dS_t gain surrogate'(v_t) + dL/dh_t     d_u[t] = 1[lower < h_t < upper] (g_t + r_t)     r_{t-1} = w d_u[t]
//
// and the parameters' sums over time that kernels.h defines, left for the caller to add up over time tiles and batch. The
// indicator is 0 at a bound and 1 at NaN, as torch has the derivatives of relu and hardtanh.
//
// Mapping. As in scan_forward.cu, with time reversed: step s of the scan is time T - 1 - s, and time tile 0 is the last. A
// sequence of a length of its own, which T then is, begins at its own last step, so that its runs are whole.
//   sequential: a thread walks all T steps of 16 bytes of channels; a ring of copies to shared memory runs ahead of the walk.
//   look_back:  a block of W <= 8 warps owns 32 vectors of four channels and 8 W steps. The recurrence in r is linear, so
//               a thread composes its steps to one affine map, and the rest is as in the forward scan.
//
// schedule scan_backward_sequential<*>: in_flight = 8, divisions = 0, spills = 0
// schedule scan_backward_sequential<*, true>: step_calls = 0, stores_16 = 1
// schedule scan_backward_sequential<float, 4, true>: step_instructions <= 224
// schedule scan_backward_sequential<bfloat16, 8, true>: step_instructions <= 420
// schedule scan_backward_sequential<float16, 8, true>: step_instructions <= 460
// schedule scan_backward_look_back<*>: divisions = 0, fences_sc = 0, fences <= 2, polls_that_invalidate = 0, spills = 0,
//   prologue_stalls <= 345
// schedule scan_backward_look_back<*, true>: prologue_stalls <= 310
// schedule scan_backward_look_back<float, 4, *>: fold_loads >= 7, stores_16 = 11, stores_8 = 0
// schedule scan_backward_look_back<*float16, 4, *>: fold_loads >= 7, stores_16 = 3, stores_8 = 8
//
// Bytes moved, an element: the membrane and each gradient given are read, d_u is written. The sums add at most four
// state values a channel and tile of them (kernels.h).
#include "../kernels.h"
#include "../math/clamp_affine.h"
#include "channels.cuh"
#include "copy_ring.cuh"
#include "dropout.cuh"
#include "launch.cuh"
#include "look_back.cuh"
#include "scan_launch.cuh"

namespace leakypar::cuda {
namespace {

// Of a tile of sums, the steps that a sequential scan adds up before it adds their sum to that of the tile.
constexpr std::int64_t added_steps = 16;

constexpr int backward_depth = sequential_depth / 2;  // two or three arrays are read where the forward scan reads one

// The surrogate as the kernel sees it. Plain: it is the default, its kind a constant, the bounds are (0, inf), and there are
// no dropout and no lengths: the common case carries one formula and no generator. Otherwise all are as the arguments say.
template <bool Plain>
__device__ __forceinline__ Surrogate known(Surrogate surrogate) {
  if constexpr (Plain) surrogate.kind = SurrogateKind::atan;
  return surrogate;
}

// A thread's part of the parameters' sums.
template <typename Real, int Width>
struct Sums {
  Real bias[Width] = {}, decay[Width] = {}, threshold[Width] = {}, gain[Width] = {};

  // Adds another's, and clears it.
  __device__ __forceinline__ void take(Sums& other) {
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      bias[i] += other.bias[i];
      decay[i] += other.decay[i];
      threshold[i] += other.threshold[i];
      gain[i] += other.gain[i];
    }
    other = {};
  }

  // Adds these to those that begin at offset, and clears them.
  template <typename Scalar>
  __device__ __forceinline__ void leave(const ScanBackward<Scalar>& args, std::int64_t offset) {
    add_state(args.sum_bias, offset, bias);
    add_state(args.sum_decay, offset, decay);
    add_state(args.sum_threshold, offset, threshold);
    add_state(args.sum_gain, offset, gain);
    *this = {};
  }
};

template <typename Scalar, int Width, bool Plain>
struct BackwardChannels {
  using Real = State<Scalar>;
  using Vector = Packet<Scalar, Width>;

  Real decay[Width], threshold[Width], gain[Width];
  ClipOf<Real, Plain> clip;
  Sums<Real, Width> sums;

  __device__ __forceinline__ BackwardChannels(const ScanBackward<Scalar>& args, std::int64_t neuron)
      : clip(decltype(clip)::template rounded<Scalar>(args.neurons.bounds)) {
    read(decay, args.neurons.decay, neuron, args.H);
    read(threshold, args.neurons.threshold, neuron, args.H);
    read(gain, args.neurons.gain, neuron, args.H);
  }

  // g_t from the rows of one time step, which begin at offset, and its part of the threshold's and the gain's sums. A row
  // that is not given counts as zeros.
  __device__ __forceinline__ void arriving(Real (&g)[Width], const ScanBackward<Scalar>& args, const Real (&h)[Width],
                                           const Vector& grad_spikes, const Vector& grad_membrane,
                                           std::int64_t offset) {
    const Surrogate surrogate = known<Plain>(args.surrogate);
    Real factors[Width];
#pragma unroll
    for (int i = 0; i < Width; ++i) factors[i] = Real(1);
    if constexpr (!Plain) {
      if (args.grad_spikes != nullptr && args.dropout.seed != nullptr) {
        dropout_factors<true>(factors, args.dropout, offset);
      }
    }
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      g[i] = Real(0);
      if (args.grad_spikes != nullptr) {
        const Real v = factors[i] * h[i] - threshold[i];
        const Real grad = widen(grad_spikes.element[i]);
        // Disabled, a spike is a constant: not even NaN gets through.
        g[i] =
            surrogate.kind == SurrogateKind::disabled ? Real(0) : grad * gain[i] * surrogate_derivative(surrogate, v);
        sums.threshold[i] -= g[i];
        g[i] *= factors[i];
        sums.gain[i] += (spike(v) ? Real(1) : Real(0)) * grad;  // NaN times 0 is NaN, as it is to autograd
      }
      if (args.grad_membrane != nullptr) g[i] += widen(grad_membrane.element[i]);
    }
  }

  // d_u[t] from r_t, its store, its part of the bias's and the decay's sums, and r_{t-1}.
  __device__ __forceinline__ void step(Real (&r)[Width], const Real (&g)[Width], const Real (&h)[Width],
                                       const Real (&earlier)[Width], Scalar* grad_u) {
    Real d_u[Width];
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      d_u[i] = clip.passes(h[i]) ? g[i] + r[i] : Real(0);
      sums.bias[i] += d_u[i];
      sums.decay[i] += d_u[i] * earlier[i];
      r[i] = decay[i] * d_u[i];
    }
    store(grad_u, d_u);
  }
};

template <int Width, typename Scalar, typename Real>
__device__ __forceinline__ void read_membrane(Real (&h)[Width], const Packet<Scalar, Width>& row) {
#pragma unroll
  for (int i = 0; i < Width; ++i) h[i] = membrane_in_range<Scalar>(widen(row.element[i]));
}

template <typename Scalar, int Width, typename Real>
__device__ __forceinline__ void load_initial_membrane(Real (&h)[Width], const ScanBackward<Scalar>& args,
                                                      std::int64_t column) {
  load_state(h, args.initial_membrane, column);
#pragma unroll
  for (int i = 0; i < Width; ++i) h[i] = membrane_in_range<Scalar>(h[i]);
}

template <typename Scalar, int Width>
using BackwardRing = CopyRing<Scalar, Width, 3, backward_depth, sequential_threads>;

template <typename Scalar, int Width, bool Plain>
__global__ void __launch_bounds__(sequential_threads)
    scan_backward_sequential(const ScanBackward<Scalar> args, const NeuronOf neuron_of) {
  using Real = State<Scalar>;
  using Vector = Packet<Scalar, Width>;
  const std::int64_t M = args.N * args.H;
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * Width;
  if (column >= M) return;

  // A step's slot holds its gradients and the membrane of the step before it, which is the next one to be walked.
  const std::int64_t steps = own_steps<Plain>(args, neuron_of, column);
  BackwardRing<Scalar, Width> ring;
  std::int64_t ahead = (steps - 1) * M + column;
  const auto fill = [&] {
    if (ahead >= 0) {
      if (ahead >= M) ring.fill(0, args.membrane + ahead - M);
      if (args.grad_spikes != nullptr) ring.fill(1, args.grad_spikes + ahead);
      if (args.grad_membrane != nullptr) ring.fill(2, args.grad_membrane + ahead);
    }
    ring.filled();
    ahead -= M;
  };
#pragma unroll 1
  for (int i = 0; i < backward_depth - 1; ++i) fill();

  BackwardChannels<Scalar, Width, Plain> channels(args, neuron_of(column));
  Real r[Width];
  load_state(r, args.grad_final_membrane, column);

  std::int64_t offset = (steps - 1) * M + column;
  Real h[Width] = {}, earlier[Width];
  if (Plain || steps > 0) read_membrane(h, load<Width>(args.membrane + offset));
  // Elements of 16 bits are rounded more than their sums are, and a second set of sums would cost registers.
  constexpr std::int64_t run = sizeof(Scalar) == sizeof(Real) ? added_steps : summed_steps;
  Sums<Real, Width> sums;
#pragma unroll 1
  for (std::int64_t t = steps - 1; t >= 0;) {
    const std::int64_t first = t / run * run;
#pragma unroll 1
    for (; t >= first; --t) {
      fill();
      ring.wait();
      Vector grad_spikes = {}, grad_membrane = {}, before = {};
      if (args.grad_spikes != nullptr) grad_spikes = ring.read(1, args.grad_spikes + offset);
      if (args.grad_membrane != nullptr) grad_membrane = ring.read(2, args.grad_membrane + offset);
      if (t > 0) before = ring.read(0, args.membrane + offset - M);
      ring.done();
      Real g[Width];
      channels.arriving(g, args, h, grad_spikes, grad_membrane, offset);
      if (t > 0) {
        read_membrane(earlier, before);
      } else {
        load_initial_membrane(earlier, args, column);
      }
      channels.step(r, g, h, earlier, args.grad_u + offset);
#pragma unroll
      for (int i = 0; i < Width; ++i) h[i] = earlier[i];
      offset -= M;
    }
    if constexpr (run < summed_steps) {
      sums.take(channels.sums);
      if (first % summed_steps == 0) sums.leave(args, first / summed_steps * M + column);
    } else {
      channels.sums.leave(args, first / summed_steps * M + column);
    }
  }
  if (args.grad_initial_membrane != nullptr) store_state(args.grad_initial_membrane, column, r);
}

// Adds the warps' sums in the order of the warps, and the total to row `time_tile` of sum [time_tiles, M]. Every thread
// of the block must call it; buffer holds [warps, columns] values.
template <int Width, typename Real>
__device__ __forceinline__ void reduce_over_warps(Real* sum, const Real (&values)[Width], Real* buffer,
                                                  const Tiling& tiling, const Place& place) {
  if (sum == nullptr) return;
  __syncthreads();  // the buffer's last use is over
#pragma unroll
  for (int i = 0; i < Width; ++i) buffer[(place.warp * warp_lanes + place.lane) * Width + i] = values[i];
  __syncthreads();  // every warp's sum is in the buffer
  if (place.warp != 0 || place.column >= tiling.M) return;
#pragma unroll
  for (int i = 0; i < Width; ++i) {
    Real total = values[i];
    for (int warp = 1; warp < tiling.warps; ++warp) total += buffer[(warp * warp_lanes + place.lane) * Width + i];
    sum[place.time_tile * tiling.M + place.column + i] += total;
  }
}

template <typename Scalar, int Width, bool Plain>
__global__ void __launch_bounds__(backward_tiling.max_warps* warp_lanes, 1)
    scan_backward_look_back(const ScanBackward<Scalar> args, const NeuronOf neuron_of, const Tiling tiling,
                            const LookBack<Affine<State<Scalar>>> book) {
  using Real = State<Scalar>;
  using Map = Affine<Real>;
  constexpr int run = TimeTiling::run;
  const auto memory = BlockMemory<Map, Width>::at(shared_memory(), tiling.warps);
  const Place place = take_place<Width>(book, tiling, memory.ticket);
  const bool active = place.column < tiling.M;
  const std::int64_t s0 = (place.time_tile * tiling.warps + place.warp) * run;
  const std::int64_t own = active ? own_steps<Plain>(args, neuron_of, place.column) : 0;
  const std::int64_t left = own - s0;
  const int steps = static_cast<int>(left < 0 ? 0 : (left < run ? left : run));
  const std::int64_t t0 = own - 1 - s0;  // the run's first step is its latest time
  const std::int64_t offset = t0 * tiling.M + place.column;

  Packet<Scalar, Width> membrane[run], grad_spikes[run], grad_membrane[run];
#pragma unroll
  for (int s = 0; s < run; ++s) {
    if (s < steps) {
      const std::int64_t at = offset - s * tiling.M;
      membrane[s] = load<Width>(args.membrane + at);
      if (args.grad_spikes != nullptr) grad_spikes[s] = load<Width>(args.grad_spikes + at);
      if (args.grad_membrane != nullptr) grad_membrane[s] = load<Width>(args.grad_membrane + at);
    }
  }
  // The membrane before the run's earliest step: the initial one where the run begins the sequence.
  Real before[Width] = {};
  if (steps > 0) {
    if (t0 >= steps) {
      read_membrane(before, load<Width>(args.membrane + offset - steps * tiling.M));
    } else {
      load_initial_membrane(before, args, place.column);
    }
  }
  // Lanes past the last channel compute on neuron 0's parameters and store nothing: they keep the warp whole.
  BackwardChannels<Scalar, Width, Plain> channels(args, active ? neuron_of(place.column) : 0);

  Real g[run][Width];
  Map map[Width];
#pragma unroll
  for (int i = 0; i < Width; ++i) map[i] = Map::identity();
#pragma unroll
  for (int s = 0; s < run; ++s) {
    if (s < steps) {
      Real h[Width];
      read_membrane(h, membrane[s]);
      channels.arriving(g[s], args, h, grad_spikes[s], grad_membrane[s], offset - s * tiling.M);
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        map[i].then(channels.decay[i], g[s][i], channels.clip.passes(h[i]));
      }
    }
  }
#pragma unroll
  for (int i = 0; i < Width; ++i) {
    if (grows(channels.decay[i]) && map[i].passes != Real(0)) {
      const Real reciprocal = Real(1) / channels.decay[i];
      map[i].offset = Real(0);
#pragma unroll
      for (int s = run - 1; s >= 0; --s) {
        if (s < steps) map[i].from_last(reciprocal, g[s][i]);
      }
    }
  }

  Real r[Width] = {};
  // Warp 0 alone: grad_final_membrane may be the array that grad_initial_membrane is written to.
  if (active && place.time_tile == 0 && place.warp == 0) load_state(r, args.grad_final_membrane, place.column);
  carry_into_run(r, map, book, tiling, place, memory, channels.decay);

#pragma unroll
  for (int s = 0; s < run; ++s) {
    if (s < steps) {
      Real h[Width], earlier[Width];
      read_membrane(h, membrane[s]);
      read_membrane(earlier, membrane[s + 1 < run ? s + 1 : s]);
#pragma unroll
      for (int i = 0; i < Width; ++i) earlier[i] = s + 1 < steps ? earlier[i] : before[i];
      channels.step(r, g[s], h, earlier, args.grad_u + offset - s * tiling.M);
    }
  }
  if (args.grad_initial_membrane != nullptr && steps > 0 && s0 + steps == own) {
    store_state(args.grad_initial_membrane, place.column, r);
  }
  reduce_over_warps(args.sum_bias, channels.sums.bias, memory.runs, tiling, place);
  reduce_over_warps(args.sum_decay, channels.sums.decay, memory.runs, tiling, place);
  reduce_over_warps(args.sum_threshold, channels.sums.threshold, memory.runs, tiling, place);
  reduce_over_warps(args.sum_gain, channels.sums.gain, memory.runs, tiling, place);
}

struct Backward {
  template <typename Scalar>
  using Args = ScanBackward<Scalar>;
  template <typename Real>
  using Map = Affine<Real>;
  static constexpr TimeTiling tiling = backward_tiling;

  template <typename Scalar, int Width, bool Plain>
  static auto sequential() {
    return &scan_backward_sequential<Scalar, Width, Plain>;
  }
  template <typename Scalar, int Width, bool Plain>
  static auto look_back() {
    return &scan_backward_look_back<Scalar, Width, Plain>;
  }
  template <typename Scalar, int Width>
  static std::size_t ring_bytes() {
    return BackwardRing<Scalar, Width>::bytes;
  }

  template <typename Scalar>
  static bool plain(const ScanBackward<Scalar>& args) {
    return args.surrogate.kind == SurrogateKind::atan && args.neurons.bounds.rectify() &&
           args.dropout.seed == nullptr && args.lengths.length == nullptr;
  }
  template <typename Scalar>
  static Beyond<Scalar> beyond(const ScanBackward<Scalar>& args) {
    return {args.T,
            args.N,
            args.H,
            args.lengths,
            args.grad_u,
            nullptr,
            args.grad_final_membrane,
            args.grad_initial_membrane};
  }
  template <typename Scalar, typename Body>
  static cudaError_t pointers(const ScanBackward<Scalar>& args, Body body) {
    return body(args.grad_spikes, args.grad_membrane, args.membrane, args.grad_u);
  }
};

}  // namespace

LEAKYPAR_LAUNCHERS(scan_backward, ScanBackward, Backward)

}  // namespace leakypar::cuda
