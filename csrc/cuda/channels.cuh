// A thread's vector of channels: how wide it can be, and how its elements and parameters are read and written.
//
// A channel is a column of a [T, M] matrix, M = N * H, and belongs to neuron (column mod H). A thread owns Width
// neighbouring columns where every row starts on a boundary of that many, one column otherwise.
#pragma once

#include <cuda_runtime.h>

#include "../kernels.h"

namespace leakypar::cuda {

// The sequential scan takes 16 bytes an access. The look-back scan holds whole runs of steps in registers, and a map of four state
// values for each channel beside them: four channels a thread is what fits.
template <typename Scalar>
inline constexpr int sequential_width = 16 / static_cast<int>(sizeof(Scalar));
template <typename Scalar>
inline constexpr int look_back_width = sequential_width<Scalar> < 4 ? sequential_width<Scalar> : 4;

// Calls body(std::integral_constant<int, Width>()) with Width = Wide where M columns and these pointers allow accesses
// that wide, else with 1. A contiguous tensor may begin anywhere in its storage, so the pointers are asked, not trusted.
template <typename Scalar, int Wide, typename Body, typename... Pointers>
cudaError_t dispatch_width(std::int64_t M, Body body, Pointers... pointers) {
  const auto misaligned = [](const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % (Wide * sizeof(Scalar)) != 0;
  };
  const bool narrow = M % Wide != 0 || (misaligned(pointers) || ...);
  return narrow ? body(std::integral_constant<int, 1>()) : body(std::integral_constant<int, Wide>());
}

// The same, and body learns as a second constant whether the call is a plain one. Only the wide kernels of the training
// types have a version of their own for that.
template <typename Scalar, int Wide, typename Body, typename... Pointers>
cudaError_t dispatch_version(std::int64_t M, bool plain, Body body, Pointers... pointers) {
  const auto of_width = [&](auto width) {
    if constexpr (decltype(width)::value > 1 && !std::is_same_v<Scalar, double>) {
      if (plain) return body(width, std::true_type());
    }
    return body(width, std::false_type());
  };
  return dispatch_width<Scalar, Wide>(M, of_width, pointers...);
}

// What clips a membrane: a plain call's bounds are (0, inf), which are known when compiled.
template <typename Real, bool Plain>
using ClipOf = std::conditional_t<Plain, Rectify<Real>, Clamp<Real>>;

// Width elements that travel as one access.
template <typename Scalar, int Width>
struct alignas(sizeof(Scalar) * Width) Packet {
  Scalar element[Width];
};

template <int Width, typename Scalar>
__device__ __forceinline__ Packet<Scalar, Width> load(const Scalar* from) {
  return *reinterpret_cast<const Packet<Scalar, Width>*>(from);
}

// A vector leaves as one store. It is put together as words and stored through a type of the hardware's: of a struct of
// elements the compiler makes a store for each.
template <typename Scalar, int Width>
__device__ __forceinline__ void store_packet(Scalar* to, const Packet<Scalar, Width>& packet) {
  constexpr int bytes = sizeof packet;
  if constexpr (bytes == 16) {
    uint4 words;
    memcpy(&words, &packet, bytes);
    __stcg(reinterpret_cast<uint4*>(to), words);
  } else if constexpr (bytes == 8) {
    uint2 words;
    memcpy(&words, &packet, bytes);
    __stcg(reinterpret_cast<uint2*>(to), words);
  } else {
    *reinterpret_cast<Packet<Scalar, Width>*>(to) = packet;
  }
}

// The same to element `at` of an array, where it is wanted: one predicate, of 16 bytes, where a branch costs a dozen clocks.
template <typename Scalar, int Width>
__device__ __forceinline__ void store_packet_if(bool wanted, Scalar* to, std::int64_t at,
                                                const Packet<Scalar, Width>& packet) {
  static_assert(sizeof packet == 16);
#ifdef __CUDACC__
  uint4 words;
  memcpy(&words, &packet, sizeof words);
  const std::uint64_t address = reinterpret_cast<std::uint64_t>(to) + at * sizeof(Scalar);
  asm volatile(
      "{ .reg .pred wanted; setp.ne.u32 wanted, %0, 0; @wanted st.global.cg.v4.u32 [%1], {%2, %3, %4, %5}; }" ::"r"(
          static_cast<unsigned>(wanted)),
      "l"(address), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
      : "memory");
#else
  if (wanted) store_packet(to + at, packet);
#endif
}

template <int Width, typename Scalar>
__device__ __forceinline__ void store(Scalar* to, const State<Scalar> (&values)[Width]) {
  Packet<Scalar, Width> packet;
#pragma unroll
  for (int i = 0; i < Width; ++i) packet.element[i] = narrow<Scalar>(values[i]);
  store_packet(to, packet);
}

// State arrays ([N, H] membranes, partial sums) are read and written once a thread, a column at a time.
template <int Width, typename Real>
__device__ __forceinline__ void load_state(Real (&values)[Width], const Real* from, std::int64_t column) {
#pragma unroll
  for (int i = 0; i < Width; ++i) values[i] = from != nullptr ? from[column + i] : Real(0);
}

template <int Width, typename Real>
__device__ __forceinline__ void store_state(Real* to, std::int64_t column, const Real (&values)[Width]) {
#pragma unroll
  for (int i = 0; i < Width; ++i) to[column + i] = values[i];
}

template <int Width, typename Real>
__device__ __forceinline__ void add_state(Real* to, std::int64_t column, const Real (&values)[Width]) {
  if (to == nullptr) return;
#pragma unroll
  for (int i = 0; i < Width; ++i) to[column + i] += values[i];
}

// Division by a number that the host knows, without a 64-bit division, which is a call of some hundred instructions: the host
// divides once, and with reciprocal = floor((2^64 - 1) / by) the upper half of a product is the quotient, or one less.
struct Divisor {
  std::uint64_t by, reciprocal;

  explicit Divisor(std::int64_t by) : by(static_cast<std::uint64_t>(by)), reciprocal(~std::uint64_t{0} / this->by) {}

  __device__ __forceinline__ std::int64_t quotient(std::int64_t of) const {
    const std::uint64_t found = __umul64hi(static_cast<std::uint64_t>(of), reciprocal);
    return static_cast<std::int64_t>(found + (static_cast<std::uint64_t>(of) - found * by >= by));
  }

  __device__ __forceinline__ std::int64_t remainder(std::int64_t of) const {
    const auto n = static_cast<std::uint64_t>(of);
    const std::uint64_t rest = n - __umul64hi(n, reciprocal) * by;
    return static_cast<std::int64_t>(rest < by ? rest : rest - by);
  }
};

// The neuron of a column, and the sequence of the batch that it belongs to.
struct NeuronOf {
  Divisor H;

  explicit NeuronOf(std::int64_t H) : H(H) {}

  __device__ __forceinline__ std::int64_t operator()(std::int64_t column) const { return H.remainder(column); }

  __device__ __forceinline__ std::int64_t sequence(std::int64_t column) const { return H.quotient(column); }
};

// The steps of the sequence that a thread's columns belong to (where there are lengths, one: see dispatch_kernel).
template <bool Plain, typename Args>
__device__ __forceinline__ std::int64_t own_steps(const Args& args, const NeuronOf& neuron_of, std::int64_t column) {
  if constexpr (Plain) {
    return args.T;
  } else {
    return args.lengths.steps(args.lengths.length != nullptr ? neuron_of.sequence(column) : 0, args.T);
  }
}

// The values of Width neighbouring columns of one parameter, from the first one's neuron on.
template <typename Element, int Width, typename Real>
__device__ __forceinline__ void gather(Real (&values)[Width], const Parameter& parameter, std::int64_t neuron,
                                       std::int64_t H) {
  const auto* data = static_cast<const Element*>(parameter.data);
  if (data == nullptr) {
#pragma unroll
    for (int i = 0; i < Width; ++i) values[i] = Real(0);
    return;
  }
#pragma unroll
  for (int i = 0; i < Width; ++i) {
    values[i] = static_cast<Real>(widen(data[neuron * parameter.stride]));
    neuron = neuron + 1 == H ? 0 : neuron + 1;
  }
}

// One switch a parameter.
template <int Width, typename Real>
__device__ __forceinline__ void read(Real (&values)[Width], const Parameter& parameter, std::int64_t neuron,
                                     std::int64_t H) {
  switch (parameter.dtype) {
    case DType::float32:
      return gather<float>(values, parameter, neuron, H);
    case DType::float64:
      return gather<double>(values, parameter, neuron, H);
    case DType::float16:
      return gather<float16>(values, parameter, neuron, H);
    case DType::bfloat16:
      return gather<bfloat16>(values, parameter, neuron, H);
  }
}

template <typename Real>
__device__ __forceinline__ Real read(const Parameter& parameter, std::int64_t neuron) {
  Real value[1];
  read(value, parameter, neuron, neuron + 2);
  return value[0];
}

}  // namespace leakypar::cuda
