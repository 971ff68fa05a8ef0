// A thread's dropout factors (math/dropout.h): those of neighbouring elements, whose words it draws together.
#pragma once

#include "../math/dropout.h"

namespace leakypar::cuda {

// Word `at` of the four, which registers cannot be indexed by.
__device__ __forceinline__ std::uint32_t pick(const PhiloxWords& words, int at) {
  const std::uint32_t low = at % 2 == 0 ? words.word[0] : words.word[1];
  const std::uint32_t high = at % 2 == 0 ? words.word[2] : words.word[3];
  return at < 2 ? low : high;
}

// The factors of Width elements from this one on, counted from the call's first. Aligned: the element is a multiple of
// four, or of Width where that is smaller, so that neighbours share a counter. A bit says whether an element is kept, until
// every counter is drawn: one register instead of Width, and one copy of the generator's code.
template <bool Aligned, int Width, typename Real>
__device__ __forceinline__ void dropout_factors(Real (&factors)[Width], const Dropout& dropout, std::int64_t element) {
  constexpr int share = !Aligned ? 1 : Width < 4 ? Width : 4;
  const auto seed = static_cast<std::uint64_t>(*dropout.seed);
  unsigned bits = 0;
#pragma unroll 1
  for (int i = 0; i < Width; i += share) {
    const auto e = static_cast<std::uint64_t>(dropout.first + element + i);
    const PhiloxWords words = philox(seed, e / 4);
#pragma unroll
    for (int j = 0; j < share; ++j) {
      const std::uint32_t word = share == 4 ? words.word[j] : pick(words, static_cast<int>(e % 4) + j);
      bits |= static_cast<unsigned>(kept(dropout, word)) << (i + j);
    }
  }
  const auto scale = static_cast<Real>(dropout.scale);
#pragma unroll
  for (int i = 0; i < Width; ++i) factors[i] = (bits >> i & 1u) != 0 ? scale : Real(0);
}

}  // namespace leakypar::cuda
