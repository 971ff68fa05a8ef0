// An input of events as bits (math/event_bits.h), and back:
//
//   bit c of row (t, n) = 1 where x[t, n, c] is not zero        x[t, n, c] = v where that bit is 1, else 0
//
// v is the first value that a thread meets. Nobody waits to learn whether it is the only one: a thread that meets another
// leaves NaN in its place, which reaches every product with x.
//
// Mapping. A thread owns a byte of a row's words, and so eight features: neighbours in memory are neighbours in a warp. Where
// rows start on 16 bytes, the features move 16 bytes at a time.
//
// Bytes moved: x once, and an eighth of an element's byte for each element of it.
//
// schedule pack_events_kernel<*>: in_flight >= 8, divisions = 0, spills = 0
// schedule unpack_events_kernel<*16, true>: stores_16 = 1
// schedule unpack_events_kernel<float, true>: stores_16 = 2
// schedule unpack_events_kernel<double, true>: stores_16 = 4
// schedule unpack_events_kernel<*>: divisions = 0, spills = 0
#include "../kernels.h"
#include "../math/event_bits.h"
#include "channels.cuh"
#include "launch.cuh"

namespace leakypar::cuda {
namespace {

constexpr int threads = 256;
constexpr int features = 8;  // of a byte

template <typename Scalar>
inline constexpr int access_width = 16 / static_cast<int>(sizeof(Scalar));

// What atomicCAS takes for an element.
template <typename Scalar>
using AtomicBits = std::conditional_t<sizeof(Scalar) == 8, unsigned long long,
                                      std::conditional_t<sizeof(Scalar) == 4, unsigned int, unsigned short>>;

// Eight features from `c` on, zeros past the last of C.
template <bool Aligned, typename Scalar>
__device__ __forceinline__ void load_features(Scalar (&x)[features], const Scalar* row, std::int64_t c,
                                              std::int64_t C) {
  constexpr int width = access_width<Scalar>;
  if constexpr (Aligned) {
    if (c + features <= C) {
#pragma unroll
      for (int i = 0; i < features; i += width) {
        const Packet<Scalar, width> packet = load<width>(row + c + i);
#pragma unroll
        for (int j = 0; j < width; ++j) x[i + j] = packet.element[j];
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < features; ++i) x[i] = c + i < C ? row[c + i] : Scalar{};
}

template <typename Scalar, bool Aligned>
__global__ void __launch_bounds__(threads)
    pack_events_kernel(const PackEvents<Scalar> args, const Divisor row_bytes, const Divisor batch) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x;
  const std::int64_t row = row_bytes.quotient(index), t = batch.quotient(row);
  if (t >= args.T) return;
  const std::int64_t c = features * row_bytes.remainder(index);
  Scalar x[features];
  load_features<Aligned>(x, args.x + t * args.x_step + batch.remainder(row) * args.x_row, c, args.C);

  unsigned ones = 0;
  AtomicBits<Scalar> mine = 0;
#pragma unroll
  for (int i = 0; i < features; ++i) {
    if (!is_event(x[i])) continue;
    ones |= 1u << i;
    mine = bits_of(x[i]);
  }
  args.bits[index] = static_cast<std::uint8_t>(ones);
  if (ones == 0) return;

  auto* const value = reinterpret_cast<AtomicBits<Scalar>*>(args.value);
  AtomicBits<Scalar> found = *static_cast<const volatile AtomicBits<Scalar>*>(value);
  if (found == 0) {
    found = atomicCAS(value, AtomicBits<Scalar>(0), mine);
    if (found == 0) found = mine;
  }
  bool broken = (found & exponent_bits<Scalar>) == exponent_bits<Scalar>;  // infinite, or NaN
#pragma unroll
  for (int i = 0; i < features; ++i) broken = broken || (is_event(x[i]) && bits_of(x[i]) != found);
  constexpr auto nan = static_cast<AtomicBits<Scalar>>(~AtomicBits<Scalar>(0));
  if (broken) atomicCAS(value, found, nan);  // where it fails, another thread has left NaN
}

template <typename Scalar, bool Aligned>
__global__ void __launch_bounds__(threads)
    unpack_events_kernel(const UnpackEvents<Scalar> args, const Divisor row_bytes) {
  constexpr int width = access_width<Scalar>;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x;
  const std::int64_t row = row_bytes.quotient(index), c = features * row_bytes.remainder(index);
  if (row >= args.rows || c >= args.C) return;
  const unsigned ones = args.bits[index];
  const Scalar value = *args.value;
  Scalar* const to = args.x + row * args.C + c;
  if constexpr (Aligned) {
    if (c + features <= args.C) {
#pragma unroll
      for (int i = 0; i < features; i += width) {
        Packet<Scalar, width> packet;
#pragma unroll
        for (int j = 0; j < width; ++j) packet.element[j] = (ones >> (i + j) & 1) != 0 ? value : Scalar{};
        store_packet(to + i, packet);
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < features; ++i) {
    if (c + i < args.C) to[i] = (ones >> i & 1) != 0 ? value : Scalar{};
  }
}

// Calls body(std::bool_constant) with whether every one of these, counted in elements, is whole accesses of 16 bytes.
template <typename Scalar, typename Body, typename... Sizes>
cudaError_t dispatch_aligned(const Scalar* x, Body body, Sizes... sizes) {
  const auto whole = [](std::int64_t size) { return size % access_width<Scalar> == 0; };
  const bool aligned = reinterpret_cast<std::uintptr_t>(x) % 16 == 0 && (whole(sizes) && ...);
  return aligned ? body(std::true_type()) : body(std::false_type());
}

}  // namespace

template <typename Scalar>
cudaError_t pack_events(const PackEvents<Scalar>& args, cudaStream_t stream) {
  const cudaError_t error = cudaMemsetAsync(args.value, 0, sizeof(Scalar), stream);
  const std::int64_t row_bytes = features * event_words(args.C), bytes = args.T * args.N * row_bytes;
  if (error != cudaSuccess || bytes == 0) return error;
  const auto body = [&](auto aligned) {
    return launch(&pack_events_kernel<Scalar, decltype(aligned)::value>, (bytes + threads - 1) / threads, threads, 0,
                  stream, args, Divisor(row_bytes), Divisor(args.N));
  };
  return dispatch_aligned(args.x, body, args.x_step, args.x_row);
}

template <typename Scalar>
cudaError_t unpack_events(const UnpackEvents<Scalar>& args, cudaStream_t stream) {
  const std::int64_t row_bytes = features * event_words(args.C), bytes = args.rows * row_bytes;
  if (bytes == 0) return cudaSuccess;
  const auto body = [&](auto aligned) {
    return launch(&unpack_events_kernel<Scalar, decltype(aligned)::value>, (bytes + threads - 1) / threads, threads, 0,
                  stream, args, Divisor(row_bytes));
  };
  return dispatch_aligned(args.x, body, args.C);
}

#define LEAKYPAR_EVENTS(Scalar)                                              \
  template cudaError_t pack_events(const PackEvents<Scalar>&, cudaStream_t); \
  template cudaError_t unpack_events(const UnpackEvents<Scalar>&, cudaStream_t);
LEAKYPAR_EVENTS(float)
LEAKYPAR_EVENTS(double)
LEAKYPAR_EVENTS(float16)
LEAKYPAR_EVENTS(bfloat16)
#undef LEAKYPAR_EVENTS

}  // namespace leakypar::cuda
