// Element arithmetic that every vector unit has, without a branch or a call.
//
// Converting _Float16 is a library call on x86-64 without F16C, and even with it stops GCC 12 from vectorising a loop.
// A ternary whose one side is zero stops it too: the compiler may move the other side's load into a branch. These
// functions leave it no choice. Roundings are to nearest even, as in scalar.h; a NaN stays one, its payload aside.
#pragma once

#include <bit>
#include <cstdint>

#include "../math/scalar.h"

namespace leakypar::cpu {

inline float to_state(float value) { return value; }

inline double to_state(double value) { return value; }

inline float to_state(bfloat16 value) { return widen(value); }

inline float to_state(float16 value) {
  // The comparisons are signed, since SSE2 and AVX2 have no others.
  constexpr std::int32_t rebias = (127 - 15) << 23;
  const std::int32_t sign = (value.bits & 0x8000) << 16;
  const std::int32_t magnitude = value.bits & 0x7FFF;
  const std::int32_t infinity_or_nan = -static_cast<std::int32_t>(magnitude >= 0x7C00);
  const std::int32_t normal = (magnitude << 13) + rebias + (rebias & infinity_or_nan);  // there, 31 becomes 255
  const std::int32_t subnormal = std::bit_cast<std::int32_t>(static_cast<float>(magnitude) * 0x1p-24f);
  return std::bit_cast<float>((magnitude < 0x0400 ? subnormal : normal) | sign);
}

template <typename Scalar>
inline Scalar to_element(State<Scalar> value) {
  return narrow<Scalar>(value);
}

template <>
inline float16 to_element<float16>(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const float magnitude = std::bit_cast<float>(bits & 0x7FFFFFFF);
  // 2^16 stands for all that lies above, NaN included: it is what follows the largest finite float16.
  const float bounded = magnitude < 0x1p16f ? magnitude : 0x1p16f;
  // 2^e, with e the exponent of the float16: a subnormal has that of the least normal.
  const float leading = std::bit_cast<float>(std::bit_cast<std::uint32_t>(bounded) & 0x7F800000);
  const float power = leading > 0x1p-14f ? leading : 0x1p-14f;
  // The last place of 2^(e + 13) as float is 2^(e - 10), that of the float16: adding it rounds to a count of those.
  const float shift = power * 0x1p13f;
  const std::uint32_t count = std::bit_cast<std::uint32_t>(bounded + shift) - std::bit_cast<std::uint32_t>(shift);
  // Assembled in the upper half, so that a vector is narrowed once, not part by part. A normal's count holds its leading
  // bit, which steps the exponent field from e + 14 to e + 15.
  const std::uint32_t exponent = (std::bit_cast<std::uint32_t>(power) << 3) - ((127u - 14u) << 26);
  const std::uint32_t quiet = value != value ? 0x0200'0000 : 0;
  const std::uint32_t result = (exponent + (count << 16)) | quiet | (bits & 0x8000'0000);
  return {static_cast<std::uint16_t>(result >> 16)};
}

// condition ? value : 0
inline float keep_if(bool condition, float value) {
  const std::int32_t mask = -static_cast<std::int32_t>(condition);
  return std::bit_cast<float>(std::bit_cast<std::int32_t>(value) & mask);
}

inline double keep_if(bool condition, double value) {
  const std::int64_t mask = -static_cast<std::int64_t>(condition);
  return std::bit_cast<double>(std::bit_cast<std::int64_t>(value) & mask);
}

inline float16 keep_if(bool condition, float16 value) {
  return {static_cast<std::uint16_t>(value.bits & -static_cast<std::int32_t>(condition))};
}

inline bfloat16 keep_if(bool condition, bfloat16 value) {
  return {static_cast<std::uint16_t>(value.bits & -static_cast<std::int32_t>(condition))};
}

}  // namespace leakypar::cpu
