// Scan and spike over a projected input, for every channel of [T, M], M = N * H:
//
//   h_t = clamp(w h_{t-1} + u_t + b, lower, upper),   h_0 = initial_membrane      S_t = gain * 1[f_t h_t - threshold > 0]
//
// with f_t = 1, or the factor of dropout (math/dropout.h).
//
// Mapping. Neighbouring channels are neighbouring lanes, and a lane owns a vector of them.
//   sequential: a thread walks all T steps of 16 bytes of channels; 128 threads a block. A ring of sequential_depth copies
//               to shared memory runs ahead of the walk, for the memory's latency.
//   look_back:  a block of W <= 8 warps owns 32 vectors of four channels and 8 W steps, 8 a thread, all loaded before the
//               first is used; a thread composes its steps to one clamp-affine map, look_back.cuh turns maps into
//               carries, and the thread replays its steps from its carry. u is read once.
//
// schedule scan_forward_sequential<*>: in_flight = 16, divisions = 0, step_calls = 0, spills = 0
// schedule scan_forward_sequential<float, 4, true>: step_instructions <= 72, stores_16 = 2, stores_narrow = 4
// schedule scan_forward_sequential<*float16, 8, true>: step_instructions <= 112, stores_16 = 2, stores_narrow = 8
// schedule scan_forward_look_back<*>: divisions = 0, fences_sc = 0, fences <= 2, polls_that_invalidate = 0, spills = 0,
//   prologue_stalls <= 345
// schedule scan_forward_look_back<*, true>: prologue_stalls <= 342
// schedule scan_forward_look_back<float, 4, *>: fold_loads >= 12, stores_16 >= 19, stores_narrow = 6
// schedule scan_forward_look_back<*float16, 4, *>: fold_loads >= 12, stores_8 = 16, stores_narrow = 6
//
// Narrow stores are the final membrane's and the flags'.
//
// Bytes moved, an element: u is read, and each of spikes and membrane that is asked for is written. u may be the buffer
// that spikes or membrane is written to: each element is read before the same thread overwrites it.
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

// Plain: the bounds are (0, inf), there is no dropout and there are no lengths, and no code for them, which would cost
// registers where it is not run, too.
template <typename Scalar, int Width, bool Plain>
struct ForwardChannels {
  State<Scalar> decay[Width], bias[Width], threshold[Width], gain[Width];
  ClipOf<State<Scalar>, Plain> clip;

  __device__ __forceinline__ ForwardChannels(const ScanForward<Scalar>& args, std::int64_t neuron)
      : clip(decltype(clip)::of(args.neurons.bounds)) {
    State<Scalar> bias_hh[Width];
    read(decay, args.neurons.decay, neuron, args.H);
    read(bias, args.neurons.bias_ih, neuron, args.H);
    read(bias_hh, args.neurons.bias_hh, neuron, args.H);
    read(threshold, args.neurons.threshold, neuron, args.H);
    read(gain, args.neurons.gain, neuron, args.H);
#pragma unroll
    for (int i = 0; i < Width; ++i) bias[i] += bias_hh[i];
  }

  // One step for every channel of the vector: membrane, then spike, then their stores at offset.
  __device__ __forceinline__ void step(State<Scalar> (&h)[Width], const Packet<Scalar, Width>& u,
                                       const ScanForward<Scalar>& args, std::int64_t offset) const {
#pragma unroll
    for (int i = 0; i < Width; ++i) h[i] = membrane_step(decay[i], h[i], widen(u.element[i]) + bias[i], clip);
    if (args.outputs.membrane != nullptr) store(args.outputs.membrane + offset, h);
    if (args.outputs.spikes != nullptr) {
      State<Scalar> seen[Width], spikes[Width];
#pragma unroll
      for (int i = 0; i < Width; ++i) seen[i] = h[i];
      if constexpr (!Plain) {
        if (args.dropout.seed != nullptr) {
          State<Scalar> factors[Width];
          dropout_factors<true>(factors, args.dropout, offset);
#pragma unroll
          for (int i = 0; i < Width; ++i) seen[i] *= factors[i];
        }
      }
#pragma unroll
      for (int i = 0; i < Width; ++i) spikes[i] = spike(seen[i] - threshold[i]) ? gain[i] : State<Scalar>(0);
      store(args.outputs.spikes + offset, spikes);
    }
  }
};

template <typename Scalar, int Width>
using ForwardRing = CopyRing<Scalar, Width, 1, sequential_depth, sequential_threads>;

template <typename Scalar, int Width, bool Plain>
__global__ void __launch_bounds__(sequential_threads)
    scan_forward_sequential(const ScanForward<Scalar> args, const NeuronOf neuron_of) {
  const std::int64_t M = args.N * args.H;
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * Width;
  if (column >= M) return;

  const std::int64_t steps = own_steps<Plain>(args, neuron_of, column);
  ForwardRing<Scalar, Width> ring;
  const Scalar* ahead = args.u + column;
  std::int64_t left = steps;  // steps that are not on their way yet
  const auto fill = [&] {
    if (left > 0) ring.fill(0, ahead);
    ring.filled();
    ahead += M;
    --left;
  };
#pragma unroll 1
  for (int i = 0; i < sequential_depth - 1; ++i) fill();

  const ForwardChannels<Scalar, Width, Plain> channels(args, neuron_of(column));
  State<Scalar> h[Width];
  load_state(h, args.initial_membrane, column);

  std::int64_t offset = column;
#pragma unroll 1
  for (std::int64_t t = 0; t < steps; ++t) {
    fill();
    ring.wait();
    const Packet<Scalar, Width> u = ring.read(0, args.u + offset);
    ring.done();
    channels.step(h, u, args, offset);
    offset += M;
  }
  if (args.outputs.final_membrane != nullptr) store_state(args.outputs.final_membrane, column, h);
}

template <typename Scalar, int Width, bool Plain>
__global__ void __launch_bounds__(forward_tiling.max_warps* warp_lanes, 1)
    scan_forward_look_back(const ScanForward<Scalar> args, const NeuronOf neuron_of, const Tiling tiling,
                           const LookBack<ClampAffine<State<Scalar>>> book) {
  using Real = State<Scalar>;
  using Map = ClampAffine<Real>;
  constexpr int run = TimeTiling::run;
  const auto memory = BlockMemory<Map, Width>::at(shared_memory(), tiling.warps);
  const Place place = take_place<Width>(book, tiling, memory.ticket);
  const bool active = place.column < tiling.M;
  const std::int64_t t0 = (place.time_tile * tiling.warps + place.warp) * run;
  const std::int64_t own = active ? own_steps<Plain>(args, neuron_of, place.column) : 0;
  const std::int64_t left = own - t0;
  const int steps = static_cast<int>(left < 0 ? 0 : (left < run ? left : run));
  const std::int64_t offset = t0 * tiling.M + place.column;

  Packet<Scalar, Width> u[run];
#pragma unroll
  for (int s = 0; s < run; ++s) {
    if (s < steps) u[s] = load<Width>(args.u + offset + s * tiling.M);
  }
  // Lanes past the last channel compute on neuron 0's parameters and store nothing: they keep the warp whole.
  const ForwardChannels<Scalar, Width, Plain> channels(args, active ? neuron_of(place.column) : 0);

  Map map[Width] = {};  // of no steps, nobody asks
  const auto input = [&](int s, int i) { return widen(u[s].element[i]) + channels.bias[i]; };
  if (steps > 0) {
#pragma unroll
    for (int i = 0; i < Width; ++i) map[i] = Map::first(channels.decay[i], input(0, i), channels.clip);
  }
#pragma unroll
  for (int s = 1; s < run; ++s) {
    if (s < steps) {
#pragma unroll
      for (int i = 0; i < Width; ++i) map[i].then(channels.decay[i], input(s, i), channels.clip);
    }
  }
#pragma unroll
  for (int i = 0; i < Width; ++i) {
    if (grows(channels.decay[i])) {
      const Real reciprocal = Real(1) / channels.decay[i];
      map[i].offset = Real(0);
#pragma unroll
      for (int s = run - 1; s >= 0; --s) {
        if (s < steps) map[i].from_last(reciprocal, input(s, i));
      }
    }
  }

  Real h[Width] = {};
  // Warp 0 alone: initial_membrane may be the array of the final membrane, and warp 0 reads it before any carry exists.
  if (active && place.time_tile == 0 && place.warp == 0) load_state(h, args.initial_membrane, place.column);
  carry_into_run(h, map, book, tiling, place, memory, channels.decay);

#pragma unroll
  for (int s = 0; s < run; ++s) {
    if (s < steps) channels.step(h, u[s], args, offset + s * tiling.M);
  }
  if (args.outputs.final_membrane != nullptr && steps > 0 && t0 + steps == own)
    store_state(args.outputs.final_membrane, place.column, h);
}

struct Forward {
  template <typename Scalar>
  using Args = ScanForward<Scalar>;
  template <typename Real>
  using Map = ClampAffine<Real>;
  static constexpr TimeTiling tiling = forward_tiling;

  template <typename Scalar, int Width, bool Plain>
  static auto sequential() {
    return &scan_forward_sequential<Scalar, Width, Plain>;
  }
  template <typename Scalar, int Width, bool Plain>
  static auto look_back() {
    return &scan_forward_look_back<Scalar, Width, Plain>;
  }
  template <typename Scalar, int Width>
  static std::size_t ring_bytes() {
    return ForwardRing<Scalar, Width>::bytes;
  }

  template <typename Scalar>
  static bool plain(const ScanForward<Scalar>& args) {
    return args.neurons.bounds.rectify() && args.dropout.seed == nullptr && args.lengths.length == nullptr;
  }
  template <typename Scalar>
  static Beyond<Scalar> beyond(const ScanForward<Scalar>& args) {
    return {args.T,
            args.N,
            args.H,
            args.lengths,
            args.outputs.spikes,
            args.outputs.membrane,
            args.initial_membrane,
            args.outputs.final_membrane};
  }
  template <typename Scalar, typename Body>
  static cudaError_t pointers(const ScanForward<Scalar>& args, Body body) {
    return body(args.u, args.outputs.spikes, args.outputs.membrane);
  }
};

}  // namespace

LEAKYPAR_LAUNCHERS(scan_forward, ScanForward, Forward)

}  // namespace leakypar::cuda
