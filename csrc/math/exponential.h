// e^x for x <= 0, in arithmetic that every vector unit has: on a CPU std::exp is a call, which no compiler vectorises.
//
// The classical reduction (Cody and Waite, "Software Manual for the Elementary Functions", 1980) and a plain Taylor series:
//
//   n = x / ln 2, rounded      r = x - n ln 2, so |r| <= ln 2 / 2      e^x = 2^n (1 + r + r^2 / 2! + ... + r^k / k!)
//
// ln 2 is taken in two parts, of which the first has so few bits that its product with n is exact. The rest of the series
// is below an eighth of a unit in the last place for k = 7 in float32 and k = 13 in float64.
//
// Error: at most 1.25 units in the last place, also of a subnormal result, for underflow is gradual; tests/test_exponential.py
// tries every float32. e^0 is 1, e^-inf is 0, and a NaN stays one. Without contraction every vector gives the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "scalar.h"

namespace leakypar {

template <typename Real>
struct ExponentialConstants;

template <>
struct ExponentialConstants<float> {
  using Bits = std::int32_t;
  static constexpr int degree = 7, mantissa_bits = 23, bias = 127;
  static constexpr float least = -104;  // whose result is 0, as is that of all below
  static constexpr float ln2_upper = 0x1.62e4p-1f, ln2_lower = 0x1.7f7d1cf79abcap-20;
  static constexpr int shift = 64;  // 2^(n + shift) is a normal number for every n
  static constexpr float unshift = 0x1p-64f;
};

template <>
struct ExponentialConstants<double> {
  using Bits = std::int64_t;
  static constexpr int degree = 13, mantissa_bits = 52, bias = 1023;
  static constexpr double least = -746;
  static constexpr double ln2_upper = 0x1.62e42fefa3p-1, ln2_lower = 0x1.3de6af278ece6p-42;
  static constexpr int shift = 512;
  static constexpr double unshift = 0x1p-512;
};

// 1 + r + r^2 / 2! + ... from the k-th term on, divided by r^k.
template <int k, int degree, typename Real>
LEAKYPAR_HOST_DEVICE Real exponential_series(Real r, double factorial) {
  const Real coefficient = static_cast<Real>(1 / factorial);
  if constexpr (k == degree) {
    return coefficient;
  } else {
    return exponential_series<k + 1, degree>(r, factorial * (k + 1)) * r + coefficient;
  }
}

template <typename Real>
LEAKYPAR_HOST_DEVICE Real exponential_of_negative(Real x) {
#ifdef __CUDA_ARCH__
  return std::exp(x);
#else
  using Constants = ExponentialConstants<Real>;
  using Bits = typename Constants::Bits;
  x = x < Constants::least ? Constants::least : x;  // a NaN stays
  // Added to so large a number, x / ln 2 is rounded to an integer, in the low bits of the sum: there n + shift is an exponent.
  constexpr Real rounder = Real(Bits(3) << (Constants::mantissa_bits - 1)) + (Constants::bias + Constants::shift);
  const Real rounded = x * Real(1.4426950408889634074) + rounder;
  const Real n = rounded - rounder;
  const Real r = (x - n * Constants::ln2_upper) - n * Constants::ln2_lower;
  Bits exponent;
  memcpy(&exponent, &rounded, sizeof exponent);
  exponent <<= Constants::mantissa_bits;
  Real power;
  memcpy(&power, &exponent, sizeof power);
  // The first product is exact, so that a subnormal result is rounded once.
  return exponential_series<0, Constants::degree>(r, 1.0) * power * Constants::unshift;
#endif
}

}  // namespace leakypar
