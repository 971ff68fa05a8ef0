// The dropout factors of a tile's row (math/dropout.h): words, four to a counter, then a factor of each.
//
// x86 multiplies the lower halves of 64-bit lanes, so a counter has a lane: its product is where the next round wants it, and
// what else is in the upper half does no harm. A round is two products, two shifts and four exclusive ors. From
// uint32_t, GCC would move both halves of each product to lanes of their own, at three shuffles each. Other processors have
// such a move, and take the plain loop.
#pragma once

#include <cstring>
#include <utility>

#include "../math/dropout.h"
#include "element.h"
#include "tile.h"
#include "vectors.h"

#ifdef __x86_64__
#include <emmintrin.h>
#endif

namespace leakypar::cpu {

#ifdef __x86_64__

// product = the lower half of each lane of a times that of b. GCC 12 knows no C++ for the one instruction.
template <typename Lanes>
LEAKYPAR_ALWAYS_INLINE inline void multiply_lower_halves(const Lanes& a, const Lanes& b, Lanes& product) {
#ifdef __clang__
  product = (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF);
#else
  if constexpr (sizeof(Lanes) == 16) {
    product = (Lanes)_mm_mul_epu32((__m128i)a, (__m128i)b);
  } else {
    asm("vpmuludq %2, %1, %0" : "=v"(product) : "v"(a), "vm"(b));
  }
#endif
}

// Appends the words of as many counters as a vector has lanes. Lanes 0, 2, 4 ... hold the first half of these counters, so
// that the instruction that joins two vectors, 16 bytes by 16, leaves them in order.
template <typename Lanes, std::size_t... lane>
LEAKYPAR_ALWAYS_INLINE inline void draw_lanes(std::uint64_t seed, std::uint64_t counter, std::uint32_t* words,
                                              std::index_sequence<lane...>) {
  constexpr std::size_t lanes = sizeof...(lane);
  constexpr Lanes order = {(lane / 2 + lane % 2 * (lanes / 2))...};
  constexpr Lanes zeros = {};
  Lanes c0 = counter + order, c1 = c0 >> 32, c2 = zeros, c3 = zeros;
  std::uint64_t key0 = seed & 0xFFFFFFFF, key1 = seed >> 32;
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    Lanes even, odd;
    multiply_lower_halves(c0, zeros + 0xD2511F53, even);
    multiply_lower_halves(c2, zeros + 0xCD9E8D57, odd);
    c0 = odd >> 32 ^ c1 ^ key0;
    c1 = odd;
    c2 = even >> 32 ^ c3 ^ key1;
    c3 = even;
    key0 = key0 + 0x9E3779B9;
    key1 = key1 + 0xBB67AE85;
  }
  const Lanes first = (c0 & 0xFFFFFFFF) | c1 << 32, second = (c2 & 0xFFFFFFFF) | c3 << 32;
  const Lanes below = __builtin_shufflevector(first, second, (lane / 2 * 2 + lane % 2 * lanes)...);
  const Lanes above = __builtin_shufflevector(first, second, (lane / 2 * 2 + 1 + lane % 2 * lanes)...);
  std::memcpy(words, &below, sizeof below);
  std::memcpy(words + 2 * lanes, &above, sizeof above);
}

#endif

// The factors of no dropout: a product with one is no instruction.
struct Ones {
  float operator[](std::int64_t) const { return 1; }
};

template <typename Real>
class DropoutRow {
 public:
  // The factors of `width` elements from this one on, counted from the call's first.
  __attribute__((noinline)) const Real* factors(const Dropout& dropout, std::int64_t element, std::int64_t width) {
    const std::int64_t first = dropout.first + element;
    const std::int64_t counter = first / 4, counters = (first + width - 1) / 4 + 1 - counter;
    const auto seed = static_cast<std::uint64_t>(*dropout.seed);
    const auto scale = static_cast<Real>(dropout.scale);
    dispatch_widths([&](auto bytes) LEAKYPAR_ALWAYS_INLINE {
      draw<bytes()>(seed, counter, counters);
      const std::uint32_t* word = words_ + first % 4;
      for (std::int64_t c = 0; c < width; ++c) factors_[c] = keep_if(kept(dropout, word[c]), scale);
    });
    return factors_.values;
  }

 private:
  template <int bytes>
  LEAKYPAR_ALWAYS_INLINE void draw(std::uint64_t seed, std::int64_t counter, std::int64_t counters) {
#ifdef __x86_64__
    typedef std::uint64_t Lanes __attribute__((vector_size(bytes)));
    constexpr std::int64_t lanes = bytes / 8;
    for (std::int64_t k = 0; k < counters; k += lanes) {
      draw_lanes<Lanes>(seed, counter + k, words_ + 4 * k, std::make_index_sequence<lanes>());
    }
#else
    for (std::int64_t k = 0; k < counters; ++k) {
      const PhiloxWords drawn = philox(seed, static_cast<std::uint64_t>(counter + k));
      for (int i = 0; i < 4; ++i) words_[4 * k + i] = drawn.word[i];
    }
#endif
  }

  // The row may begin and end inside a counter's four, and the last vector of 8 counters be of one.
  alignas(64) std::uint32_t words_[kTileWidth<Real> + 36];
  Columns<Real> factors_;
};

}  // namespace leakypar::cpu
