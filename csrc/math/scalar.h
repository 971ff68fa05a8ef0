// Element types, and the state type each one accumulates in.
//
// float16 and bfloat16 are storage only: a value is widened on load, computed on in float32, and rounded to nearest
// even on store. They are our own structs so that one source serves nvcc, the host compiler and a build with no CUDA
// toolkit at all; their bits are IEEE binary16 and the upper half of binary32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define LEAKYPAR_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LEAKYPAR_HOST_DEVICE __attribute__((always_inline)) inline
#endif

namespace leakypar {

struct float16 {
  std::uint16_t bits;
};

struct bfloat16 {
  std::uint16_t bits;
};

enum class DType : std::int32_t { float32, float64, float16, bfloat16 };

// The type of the membrane between two time steps, and of every sum.
template <typename Scalar>
struct StateOf {
  using type = float;
};
template <>
struct StateOf<double> {
  using type = double;
};
template <typename Scalar>
using State = typename StateOf<Scalar>::type;

LEAKYPAR_HOST_DEVICE float widen(float value) { return value; }

LEAKYPAR_HOST_DEVICE double widen(double value) { return value; }

LEAKYPAR_HOST_DEVICE float widen(bfloat16 value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

LEAKYPAR_HOST_DEVICE float widen(float16 value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  _Float16 half;
  memcpy(&half, &value.bits, sizeof half);
  return static_cast<float>(half);
#endif
}

template <typename Scalar>
struct Narrow;

template <>
struct Narrow<float> {
  static LEAKYPAR_HOST_DEVICE float from(float value) { return value; }
};

template <>
struct Narrow<double> {
  static LEAKYPAR_HOST_DEVICE double from(double value) { return value; }
};

template <>
struct Narrow<bfloat16> {
  static LEAKYPAR_HOST_DEVICE bfloat16 from(float value) {
#ifdef __CUDA_ARCH__
    return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
    std::uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const std::uint32_t rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);  // to nearest, ties to even
    const bool is_nan = value != value;                                  // rounding could carry a NaN into infinity
    return {static_cast<std::uint16_t>(is_nan ? 0x7FFFu : rounded >> 16)};
#endif
  }
};

template <>
struct Narrow<float16> {
  static LEAKYPAR_HOST_DEVICE float16 from(float value) {
#ifdef __CUDA_ARCH__
    return {__half_as_ushort(__float2half_rn(value))};
#else
    const auto half = static_cast<_Float16>(value);
    float16 result;
    memcpy(&result.bits, &half, sizeof half);
    return result;
#endif
  }
};

template <typename Scalar>
LEAKYPAR_HOST_DEVICE Scalar narrow(State<Scalar> value) {
  return Narrow<Scalar>::from(value);
}

// A membrane as a backward reads it. One of a float16 layer beyond 65,504 was stored as infinity, whose product with a
// gradient or a dropout factor of zero would be NaN: the largest float16 stands for it. The range of the other types is
// that of float32.
template <typename Scalar>
LEAKYPAR_HOST_DEVICE State<Scalar> membrane_in_range(State<Scalar> h) {
  if constexpr (std::is_same_v<Scalar, float16>) {
    constexpr float infinity = std::numeric_limits<float>::infinity(), largest = 65504;
    return h == infinity ? largest : h == -infinity ? -largest : h;
  }
  return h;
}

}  // namespace leakypar
