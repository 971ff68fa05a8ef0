// How either scan is launched, sequential or look-back, given what the two directions differ in. A Direction has
//
//   Args, Map<Real>, tiling        its arguments, the map that look-back composes, how it divides time
//   plain(args)                    whether the kernels without the rare options do
//   beyond(args)                   what is filled after the scan where sequences have lengths of their own
//   pointers(args, body)           body(pointers...) with the element arrays, whose alignment decides the width
//   sequential(), look_back()      the kernels, and ring_bytes(), the shared memory of the first
#pragma once

#include "channels.cuh"
#include "launch.cuh"
#include "look_back.cuh"

namespace leakypar::cuda {

inline constexpr int sequential_threads = 128;

template <typename Direction, typename Scalar>
using MapOf = typename Direction::template Map<State<Scalar>>;

template <typename Direction, typename Scalar, int Wide, typename Body>
cudaError_t dispatch_kernel(const typename Direction::template Args<Scalar>& args, Body body) {
  // With lengths, a thread's columns must belong to one sequence.
  const std::int64_t neighbours = args.lengths.length != nullptr ? args.H : args.N * args.H;
  return Direction::pointers(args, [&](auto... pointers) {
    return dispatch_version<Scalar, Wide>(neighbours, Direction::plain(args), body, pointers...);
  });
}

template <typename Direction, typename Scalar>
cudaError_t launch_sequential(const typename Direction::template Args<Scalar>& args, cudaStream_t stream) {
  return dispatch_kernel<Direction, Scalar, sequential_width<Scalar>>(args, [&](auto width, auto plain) {
    constexpr int Width = decltype(width)::value;
    const std::int64_t blocks = (args.N * args.H + sequential_threads * Width - 1) / (sequential_threads * Width);
    return launch(Direction::template sequential<Scalar, Width, decltype(plain)::value>(), blocks, sequential_threads,
                  Direction::template ring_bytes<Scalar, Width>(), stream, args, NeuronOf(args.H));
  });
}

template <typename Direction, typename Scalar>
cudaError_t launch_look_back(const typename Direction::template Args<Scalar>& args, void* workspace,
                             cudaStream_t stream) {
  using Map = MapOf<Direction, Scalar>;
  return dispatch_kernel<Direction, Scalar, look_back_width<Scalar>>(args, [&](auto width, auto plain) {
    constexpr int Width = decltype(width)::value;
    const Tiling tiling(Direction::tiling, args.T, args.N * args.H, Width);
    const cudaError_t error = LookBack<Map>::clear(workspace, tiling, stream);
    if (error != cudaSuccess) return error;
    return launch(Direction::template look_back<Scalar, Width, decltype(plain)::value>(),
                  tiling.time_tiles * tiling.channel_tiles, tiling.warps * warp_lanes,
                  BlockMemory<Map, Width>::bytes(tiling.warps), stream, args, NeuronOf(args.H), tiling,
                  LookBack<Map>::at(workspace, tiling));
  });
}

template <typename Direction, typename Scalar>
std::int64_t workspace_bytes(const typename Direction::template Args<Scalar>& args, Method method) {
  if (method == Method::sequential) return 0;
  // One column a lane makes the most tiles, so what that needs serves any width.
  return LookBack<MapOf<Direction, Scalar>>::bytes(Tiling(Direction::tiling, args.T, args.N * args.H, 1));
}

template <typename Direction, typename Scalar>
cudaError_t launch_scan(const typename Direction::template Args<Scalar>& args, Method method, void* workspace,
                        cudaStream_t stream) {
  if (args.T == 0 || args.N * args.H == 0) return cudaSuccess;
  const cudaError_t error = method == Method::sequential ? launch_sequential<Direction, Scalar>(args, stream)
                                                         : launch_look_back<Direction, Scalar>(args, workspace, stream);
  return error == cudaSuccess ? fill_beyond(Direction::beyond(args), stream) : error;
}

}  // namespace leakypar::cuda

// The launchers that kernels.h declares, for every element type.
#define LEAKYPAR_LAUNCHERS(scan, Args, Direction)                                                   \
  template <typename Scalar>                                                                        \
  std::int64_t scan##_workspace(const Args<Scalar>& args, Method method) {                          \
    return workspace_bytes<Direction, Scalar>(args, method);                                        \
  }                                                                                                 \
  template <typename Scalar>                                                                        \
  cudaError_t scan(const Args<Scalar>& args, Method method, void* workspace, cudaStream_t stream) { \
    return launch_scan<Direction, Scalar>(args, method, workspace, stream);                         \
  }                                                                                                 \
  template std::int64_t scan##_workspace(const Args<float>&, Method);                               \
  template std::int64_t scan##_workspace(const Args<double>&, Method);                              \
  template std::int64_t scan##_workspace(const Args<float16>&, Method);                             \
  template std::int64_t scan##_workspace(const Args<bfloat16>&, Method);                            \
  template cudaError_t scan(const Args<float>&, Method, void*, cudaStream_t);                       \
  template cudaError_t scan(const Args<double>&, Method, void*, cudaStream_t);                      \
  template cudaError_t scan(const Args<float16>&, Method, void*, cudaStream_t);                     \
  template cudaError_t scan(const Args<bfloat16>&, Method, void*, cudaStream_t);
