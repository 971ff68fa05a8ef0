// Events as bits. A row of C features that are zero or one other value v is a set of features: bit c % 64 of the row's word
// c / 64 is 1 where feature c is not zero, and what lies past the last feature is 0. Machines are little-endian, so that this
// is bit c % 8 of byte c / 8 as well: a CPU goes by words, a thread of a GPU by bytes.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "scalar.h"

namespace leakypar {

static_assert(std::endian::native == std::endian::little);

constexpr std::int64_t event_words(std::int64_t C) { return C / 64 + (C % 64 != 0); }

// An element's bits, as a number.
template <typename Scalar>
using BitsOf = std::conditional_t<sizeof(Scalar) == 8, std::uint64_t,
                                  std::conditional_t<sizeof(Scalar) == 4, std::uint32_t, std::uint16_t>>;

template <typename Scalar>
LEAKYPAR_HOST_DEVICE BitsOf<Scalar> bits_of(Scalar value) {
  BitsOf<Scalar> bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Infinity and NaN have all of these.
template <typename Scalar>
inline constexpr BitsOf<Scalar> exponent_bits = std::is_same_v<Scalar, double>  ? BitsOf<Scalar>(0x7FF0'0000'0000'0000u)
                                                : std::is_same_v<Scalar, float> ? BitsOf<Scalar>(0x7F80'0000u)
                                                : std::is_same_v<Scalar, float16> ? BitsOf<Scalar>(0x7C00u)
                                                                                  : BitsOf<Scalar>(0x7F80u);

template <typename Scalar>
LEAKYPAR_HOST_DEVICE bool is_finite(Scalar value) {
  constexpr BitsOf<Scalar> exponent = exponent_bits<Scalar>;
  return static_cast<BitsOf<Scalar>>(bits_of(value) & exponent) != exponent;
}

// Whatever the sign of a zero.
template <typename Scalar>
LEAKYPAR_HOST_DEVICE bool is_event(Scalar value) {
  return static_cast<BitsOf<Scalar>>(bits_of(value) << 1) != 0;
}

}  // namespace leakypar
