// Scan and spike over a projected input, for every channel of [T, M], M = N * H:
//
//   h_t = relu(w h_{t-1} + u_t + b),   h_0 = initial          S_t = gain * 1[f_t h_t - threshold > 0]
//
// with f_t = 1, or the factor of dropout (math/dropout.h).
//
// Mapping. Neighbouring channels are neighbouring lanes, and a lane owns a vector of them.
//   lane:  a thread walks all T steps of 16 bytes of channels; 128 threads a block. A ring of lane_depth loads runs
//          ahead of the walk, for the memory's latency.
//   split: a block of W <= 8 warps owns 32 vectors of four channels and 8 W steps, 8 a thread, all loaded before the
//          first is used; a thread composes its steps to one clamp-affine map, look_back.cuh turns maps into carries,
//          and the thread replays its steps from its carry. u is read once.
//
// Bytes moved, an element: u is read, and each of spikes and membrane that is asked for is written. u may be the buffer
// that spikes or membrane is written to: each element is read before the same thread overwrites it.
#include "../leakypar.h"
#include "../math/clamp_affine.h"
#include "channels.cuh"
#include "dropout.cuh"
#include "launch.cuh"
#include "look_back.cuh"

namespace leakypar::cuda {
namespace {

constexpr int lane_threads = 128;

// Plain: there is no dropout, and no code for it, which would cost registers where it is not run, too.
template <typename Scalar, int Width, bool Plain>
struct Neurons {
  State<Scalar> decay[Width], bias[Width], threshold[Width], gain[Width];

  __device__ __forceinline__ Neurons(const ScanForward<Scalar>& args, std::int64_t column) {
    State<Scalar> bias_hh[Width];
    read(decay, args.decay, column, args.H);
    read(bias, args.bias_ih, column, args.H);
    read(bias_hh, args.bias_hh, column, args.H);
    read(threshold, args.threshold, column, args.H);
    read(gain, args.gain, column, args.H);
#pragma unroll
    for (int i = 0; i < Width; ++i) bias[i] += bias_hh[i];
  }

  // One step for every channel of the vector: membrane, then spike, then their stores at offset.
  __device__ __forceinline__ void step(State<Scalar> (&h)[Width], const Packet<Scalar, Width>& u,
                                       const ScanForward<Scalar>& args, std::int64_t offset) const {
#pragma unroll
    for (int i = 0; i < Width; ++i) h[i] = membrane_step(decay[i], h[i], widen(u.element[i]) + bias[i]);
    if (args.membrane != nullptr) store(args.membrane + offset, h);
    if (args.spikes != nullptr) {
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
      store(args.spikes + offset, spikes);
    }
  }
};

template <typename Scalar, int Width, bool Plain>
__global__ void __launch_bounds__(lane_threads) scan_forward_lane(const ScanForward<Scalar> args) {
  const std::int64_t M = args.N * args.H;
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * Width;
  if (column >= M) return;

  const Neurons<Scalar, Width, Plain> neurons(args, column);
  State<Scalar> h[Width];
  load_state(h, args.initial, column);

  Packet<Scalar, Width> ahead[lane_depth];
#pragma unroll
  for (int i = 0; i < lane_depth; ++i) {
    if (i < args.T) ahead[i] = load<Width>(args.u + i * M + column);
  }
  for (std::int64_t t0 = 0; t0 < args.T; t0 += lane_depth) {
#pragma unroll
    for (int i = 0; i < lane_depth; ++i) {
      const std::int64_t t = t0 + i;
      if (t < args.T) {
        const Packet<Scalar, Width> u = ahead[i];
        if (t + lane_depth < args.T) ahead[i] = load<Width>(args.u + (t + lane_depth) * M + column);
        neurons.step(h, u, args, t * M + column);
      }
    }
  }
  if (args.last != nullptr) store_state(args.last, column, h);
}

template <typename Scalar, int Width, bool Plain>
__global__ void __launch_bounds__(split_forward.max_warps* warp_lanes, 1)
    scan_forward_split(const ScanForward<Scalar> args, const Tiling tiling,
                       const LookBack<ClampAffine<State<Scalar>>> book) {
  using Real = State<Scalar>;
  using Map = ClampAffine<Real>;
  constexpr int run = SplitShape::run;
  const auto memory = BlockMemory<Map, Width>::at(shared_memory(), tiling.warps);
  const Place place = take_place<Width>(book, tiling, memory.ticket);
  const bool active = place.column < tiling.M;
  const std::int64_t t0 = (place.chunk * tiling.warps + place.warp) * run;
  const std::int64_t left = active ? tiling.T - t0 : 0;
  const int steps = static_cast<int>(left < 0 ? 0 : (left < run ? left : run));
  const std::int64_t offset = t0 * tiling.M + place.column;

  Packet<Scalar, Width> u[run];
#pragma unroll
  for (int s = 0; s < run; ++s) {
    if (s < steps) u[s] = load<Width>(args.u + offset + s * tiling.M);
  }
  // Lanes past the last channel compute on neuron 0's parameters and store nothing: they keep the warp whole.
  const Neurons<Scalar, Width, Plain> neurons(args, active ? place.column : 0);

  Map map[Width];
#pragma unroll
  for (int i = 0; i < Width; ++i) map[i] = Map::identity();
#pragma unroll
  for (int s = 0; s < run; ++s) {
    if (s < steps) {
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        map[i] = compose(map[i], Map::step(neurons.decay[i], widen(u[s].element[i]) + neurons.bias[i]));
      }
    }
  }

  Real h[Width] = {};
  // Warp 0 alone: initial may be the array that last is written to, and warp 0 reads it before any carry exists.
  if (active && place.chunk == 0 && place.warp == 0) load_state(h, args.initial, place.column);
  carry_into_run(h, map, book, tiling, place, memory);

#pragma unroll
  for (int s = 0; s < run; ++s) {
    if (s < steps) neurons.step(h, u[s], args, offset + s * tiling.M);
  }
  if (args.last != nullptr && steps > 0 && t0 + steps == tiling.T) store_state(args.last, place.column, h);
}

template <typename Scalar, int Wide, typename Body>
cudaError_t specialised(const ScanForward<Scalar>& args, Body body) {
  const bool plain = args.dropout.seed == nullptr;
  return with_version<Scalar, Wide>(args.N * args.H, plain, body, args.u, args.spikes, args.membrane);
}

template <typename Scalar>
cudaError_t launch_lane(const ScanForward<Scalar>& args, cudaStream_t stream) {
  return specialised<Scalar, lane_width<Scalar>>(args, [&](auto width, auto plain) {
    constexpr int Width = decltype(width)::value;
    const std::int64_t blocks = (args.N * args.H + lane_threads * Width - 1) / (lane_threads * Width);
    return launch(scan_forward_lane<Scalar, Width, decltype(plain)::value>, blocks, lane_threads, 0, stream, args);
  });
}

template <typename Scalar>
cudaError_t launch_split(const ScanForward<Scalar>& args, void* workspace, cudaStream_t stream) {
  using Map = ClampAffine<State<Scalar>>;
  return specialised<Scalar, split_width<Scalar>>(args, [&](auto width, auto plain) {
    constexpr int Width = decltype(width)::value;
    const Tiling tiling(split_forward, args.T, args.N * args.H, Width);
    const cudaError_t error = LookBack<Map>::clear(workspace, tiling, stream);
    if (error != cudaSuccess) return error;
    return launch(scan_forward_split<Scalar, Width, decltype(plain)::value>, tiling.chunks * tiling.tiles,
                  tiling.warps * warp_lanes, BlockMemory<Map, Width>::bytes(tiling.warps), stream, args, tiling,
                  LookBack<Map>::at(workspace, tiling));
  });
}

}  // namespace

template <typename Scalar>
std::int64_t scan_forward_workspace(const ScanForward<Scalar>& args, Scan scan) {
  if (scan == Scan::lane) return 0;
  // One column a lane makes the most tiles, so what that needs serves any width.
  return LookBack<ClampAffine<State<Scalar>>>::bytes(Tiling(split_forward, args.T, args.N * args.H, 1));
}

template <typename Scalar>
cudaError_t scan_forward(const ScanForward<Scalar>& args, Scan scan, void* workspace, cudaStream_t stream) {
  if (args.T == 0 || args.N * args.H == 0) return cudaSuccess;
  return scan == Scan::lane ? launch_lane(args, stream) : launch_split(args, workspace, stream);
}

template std::int64_t scan_forward_workspace(const ScanForward<float>&, Scan);
template std::int64_t scan_forward_workspace(const ScanForward<double>&, Scan);
template std::int64_t scan_forward_workspace(const ScanForward<float16>&, Scan);
template std::int64_t scan_forward_workspace(const ScanForward<bfloat16>&, Scan);
template cudaError_t scan_forward(const ScanForward<float>&, Scan, void*, cudaStream_t);
template cudaError_t scan_forward(const ScanForward<double>&, Scan, void*, cudaStream_t);
template cudaError_t scan_forward(const ScanForward<float16>&, Scan, void*, cudaStream_t);
template cudaError_t scan_forward(const ScanForward<bfloat16>&, Scan, void*, cudaStream_t);

}  // namespace leakypar::cuda
