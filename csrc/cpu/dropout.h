// The dropout factors of a tile's row (math/dropout.h): words, four to a counter, then a factor of each.
#pragma once

#include "../math/dropout.h"
#include "element.h"
#include "tile.h"
#include "vectors.h"

namespace leakypar::cpu {

template <typename Real>
class DropoutRow {
 public:
  // The factors of `width` elements from this one on, counted from the call's first.
  LEAKYPAR_ALWAYS_INLINE inline const Real* factors(const Dropout& dropout, std::int64_t element, std::int64_t width) {
    const std::int64_t first = dropout.first + element;
    const std::int64_t counter = first / 4, counters = (first + width - 1) / 4 + 1 - counter;
    const auto seed = static_cast<std::uint64_t>(*dropout.seed);
    for (std::int64_t k = 0; k < counters; ++k) {
      const PhiloxWords drawn = philox(seed, static_cast<std::uint64_t>(counter + k));
      for (int i = 0; i < 4; ++i) words_[4 * k + i] = drawn.word[i];
    }
    const std::uint32_t* word = words_ + first % 4;
    const auto scale = static_cast<Real>(dropout.scale);
    for (std::int64_t c = 0; c < width; ++c) factors_[c] = keep_if(kept(dropout, word[c]), scale);
    return factors_.values;
  }

 private:
  alignas(64) std::uint32_t words_[kTileWidth<Real> + 8];  // the row may begin and end inside a counter's four
  Columns<Real> factors_;
};

}  // namespace leakypar::cpu
