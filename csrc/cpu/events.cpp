// The products of events.h. A thread holds eight vectors of sums, a tile of neurons, in registers:
//
//   forward     for a tile and a block of rows: for each one of a row, add the tile of its weights' row to the sums
//   gradient    for a tile and a range of features: for each row, its tile of d_u is in registers, and is added to the
//               sums of each of the row's features, which stay in the second-level cache
//
// An addition moves `width` elements from the cache, and nothing is multiplied but each sum once by v.
#include "events.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>

#include "element.h"
#include "vectors.h"

namespace leakypar::cpu {
namespace {

// Bits 0 to 7 from eight bytes that are 0 or 1, the first in the lowest.
LEAKYPAR_ALWAYS_INLINE inline std::uint64_t gathered(const std::uint8_t* bytes) {
  std::uint64_t eight;
  std::memcpy(&eight, bytes, sizeof eight);
  return eight * 0x0102'0408'1020'4080u >> 56;
}

// One word from up to 64 elements; `others` collects what is neither zero nor `value`.
template <typename Scalar>
LEAKYPAR_ALWAYS_INLINE inline std::uint64_t packed_word(const Scalar* x, std::int64_t count, BitsOf<Scalar> value,
                                                        BitsOf<Scalar>& others) {
  using Bits = BitsOf<Scalar>;
  std::uint8_t ones[64] = {};
  Bits other = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const Bits one = is_event(x[i]);
    ones[i] = static_cast<std::uint8_t>(one);
    other |= one & static_cast<Bits>(bits_of(x[i]) != value);
  }
  others |= other;
  std::uint64_t word = 0;
  for (int i = 0; i < 8; ++i) word |= gathered(ones + 8 * i) << (8 * i);
  return word;
}

// The first value that is not zero, or zero where there is none.
template <typename Scalar>
Scalar first_value(const InputRows<Scalar>& from) {
  for (std::int64_t r = 0; r < from.rows; ++r) {
    for (const Scalar *x = from[r], *last = x + from.C; x != last; ++x) {
      if (is_event(*x)) return *x;
    }
  }
  return {};
}

// Up to 64 elements from a word: the value where its bit is 1, else zero.
template <typename Scalar>
LEAKYPAR_ALWAYS_INLINE inline void unpack_word(Scalar* x, std::int64_t count, std::uint64_t word,
                                               BitsOf<Scalar> value) {
  using Bits = BitsOf<Scalar>;
  constexpr std::int64_t at_once = 8 * sizeof(Bits);  // as many as an element has bits, one of which each looks at
  for (std::int64_t first = 0; first < count; first += at_once) {
    const auto part = static_cast<Bits>(word >> first);
    const std::int64_t last = std::min(count - first, at_once);
    for (std::int64_t i = 0; i < last; ++i) {
      const Bits bits = (part & static_cast<Bits>(Bits(1) << i)) != 0 ? value : Bits(0);
      std::memcpy(x + first + i, &bits, sizeof bits);
    }
  }
}

// Rows that are worth a thread.
std::int64_t grain_of_rows(std::int64_t C) {
  return std::max<std::int64_t>(1, (1 << 16) / std::max<std::int64_t>(C, 1));
}

// Calls body(c) for each one of a row's words [first, last).
template <typename Body>
LEAKYPAR_ALWAYS_INLINE inline void for_each_one(const std::uint64_t* row, std::int64_t first, std::int64_t last,
                                                const Body& body) {
  for (std::int64_t w = first; w < last; ++w) {
    for (std::uint64_t left = row[w]; left != 0; left &= left - 1) body(64 * w + std::countr_zero(left));
  }
}

// Of a matrix that is transposed, what is read and written at a time stays in the first-level cache.
constexpr std::int64_t kBlockFeatures = 32;
template <typename Real>
constexpr std::int64_t kTransposedGrain = (1 << 16) / (kBlockFeatures * NeuronTiles<Real>::width);

template <typename Real>
struct alignas(64) TileRow {
  Real values[NeuronTiles<Real>::width];
};

// to += from, a tile's row. Loops of a constant length over 64-byte steps: the compiler unrolls them, and with `to` a local
// array keeps it in registers.
template <typename Real>
LEAKYPAR_ALWAYS_INLINE inline void add_row(Real* __restrict to, const Real* __restrict from) {
  for (std::int64_t i = 0; i < NeuronTiles<Real>::width; ++i) to[i] += from[i];
}

}  // namespace

template <typename Scalar>
bool all_finite(const Scalar* values, std::int64_t count, const Threads& threads) {
  std::atomic<bool> finite{true};
  threads.parallel_for(count, 1 << 16, [&](std::int64_t begin, std::int64_t end) {
    dispatch_vectors([&]() LEAKYPAR_ALWAYS_INLINE {
      std::uint32_t not_finite = 0;
      for (std::int64_t i = begin; i < end; ++i) not_finite |= !is_finite(values[i]);
      if (not_finite != 0) finite.store(false, std::memory_order_relaxed);
    });
  });
  return finite;
}

template <typename Scalar>
std::optional<Scalar> pack_events(std::uint64_t* bits, const InputRows<Scalar>& from, const Threads& threads) {
  const Scalar value = first_value(from);
  if (!is_finite(value)) return std::nullopt;
  const std::int64_t words = event_words(from.C), whole = from.C / 64;
  std::atomic<bool> binary{true};
  threads.parallel_for(from.rows, grain_of_rows(from.C), [&](std::int64_t begin, std::int64_t end) {
    dispatch_vectors([&]() LEAKYPAR_ALWAYS_INLINE {
      for (std::int64_t r = begin; r < end && binary.load(std::memory_order_relaxed); ++r) {
        BitsOf<Scalar> others = 0;
        std::uint64_t* const row = bits + r * words;
        const Scalar* const x = from[r];
        for (std::int64_t w = 0; w < whole; ++w) row[w] = packed_word(x + 64 * w, 64, bits_of(value), others);
        if (whole < words) row[whole] = packed_word(x + 64 * whole, from.C - 64 * whole, bits_of(value), others);
        if (others != 0) binary.store(false, std::memory_order_relaxed);
      }
    });
  });
  return binary ? std::optional(value) : std::nullopt;
}

template <typename Scalar>
void unpack_events(Scalar* x, const EventRows& events, const Threads& threads) {
  const BitsOf<Scalar> value = bits_of(to_element<Scalar>(static_cast<State<Scalar>>(events.value)));
  const std::int64_t words = events.words(), whole = events.C / 64;
  threads.parallel_for(events.rows, grain_of_rows(events.C), [&](std::int64_t begin, std::int64_t end) {
    dispatch_vectors([&]() LEAKYPAR_ALWAYS_INLINE {
      for (std::int64_t r = begin; r < end; ++r) {
        const std::uint64_t* const row = events.bits + r * words;
        Scalar* const to = x + r * events.C;
        for (std::int64_t w = 0; w < whole; ++w) unpack_word(to + 64 * w, 64, row[w], value);
        if (whole < words) unpack_word(to + 64 * whole, events.C - 64 * whole, row[whole], value);
      }
    });
  });
}

std::int64_t count_ones(const std::uint64_t* bits, std::int64_t words, const Threads& threads) {
  std::atomic<std::int64_t> count{0};
  threads.parallel_for(words, 1 << 14, [&](std::int64_t begin, std::int64_t end) {
    dispatch_vectors([&]() LEAKYPAR_ALWAYS_INLINE {
      std::int64_t ones = 0;
      for (std::int64_t w = begin; w < end; ++w) ones += std::popcount(bits[w]);
      count.fetch_add(ones, std::memory_order_relaxed);
    });
  });
  return count;
}

template <typename Scalar>
bool pack_weights(NeuronTiles<State<Scalar>>& tiles, const Scalar* weight, std::int64_t weight_row,
                  const Threads& threads) {
  using Real = State<Scalar>;
  constexpr std::int64_t width = NeuronTiles<Real>::width;
  std::atomic<bool> finite{true};
  const std::int64_t blocks = (tiles.C + kBlockFeatures - 1) / kBlockFeatures;
  threads.parallel_for(tiles.tiles() * blocks, kTransposedGrain<Real>, [&](std::int64_t begin, std::int64_t end) {
    std::uint32_t not_finite = 0;
    for (std::int64_t unit = begin; unit < end; ++unit) {
      const std::int64_t tile = unit / blocks, first = unit % blocks * kBlockFeatures;
      const std::int64_t last = std::min(first + kBlockFeatures, tiles.C);
      const std::int64_t neurons = std::min(width, tiles.H - tile * width);
      for (std::int64_t i = 0; i < neurons; ++i) {
        const Scalar* const from = weight + (tile * width + i) * weight_row;
        for (std::int64_t c = first; c < last; ++c) {
          tiles.at(tile, c)[i] = to_state(from[c]);
          not_finite |= !is_finite(from[c]);
        }
      }
    }
    if (not_finite != 0) finite.store(false, std::memory_order_relaxed);
  });
  return finite;
}

template <typename Real, typename Projected>
void project_events(Projected* u, const EventRows& events, const NeuronTiles<Real>& weights, const Threads& threads) {
  constexpr std::int64_t width = NeuronTiles<Real>::width, block = 64;
  const std::int64_t blocks = (events.rows + block - 1) / block;
  const Real value = static_cast<Real>(events.value);
  // Tiles in the outer order: a tile's weights stay in the second-level cache while the rows pass.
  threads.parallel_for(weights.tiles() * blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    dispatch_vectors([&]() LEAKYPAR_ALWAYS_INLINE {
      for (std::int64_t unit = begin; unit < end; ++unit) {
        const std::int64_t tile = unit / blocks, first = unit % blocks * block;
        const std::int64_t neurons = std::min(width, weights.H - tile * width);
        for (std::int64_t r = first; r < std::min(first + block, events.rows); ++r) {
          TileRow<Real> sums = {};
          for_each_one(events.bits + r * events.words(), 0, events.words(),
                       [&](std::int64_t c) LEAKYPAR_ALWAYS_INLINE { add_row(sums.values, weights.at(tile, c)); });
          Projected* const to = u + r * weights.H + tile * width;
          if (neurons == width) {
            for (std::int64_t i = 0; i < width; ++i) to[i] = to_element<Projected>(value * sums.values[i]);
          } else {
            for (std::int64_t i = 0; i < neurons; ++i) to[i] = to_element<Projected>(value * sums.values[i]);
          }
        }
      }
    });
  });
}

template <typename Real, typename Projected>
void add_event_gradient(NeuronTiles<Real>& sums, const EventRows& events, const Projected* d_u,
                        const Threads& threads) {
  constexpr std::int64_t width = NeuronTiles<Real>::width;
  // Features are shared out too: so that few neurons leave no thread idle, and so that the sums of a range, half a MiB, stay
  // in the second-level cache. An element has one thread in any case.
  constexpr std::int64_t cached_features = (1 << 19) / (width * sizeof(Real));
  const std::int64_t needed = std::max<std::int64_t>(threads.count, (events.C + cached_features - 1) / cached_features);
  const std::int64_t ranges = std::clamp<std::int64_t>(needed, 1, std::max<std::int64_t>(events.words(), 1));
  const std::int64_t words = (events.words() + ranges - 1) / ranges;
  const Real value = static_cast<Real>(events.value);
  threads.parallel_for(sums.tiles() * ranges, 1, [&](std::int64_t begin, std::int64_t end) {
    dispatch_vectors([&]() LEAKYPAR_ALWAYS_INLINE {
      for (std::int64_t unit = begin; unit < end; ++unit) {
        const std::int64_t tile = unit / ranges, first = unit % ranges * words;
        const std::int64_t last = std::min(first + words, events.words());
        const std::int64_t neurons = std::min(width, sums.H - tile * width);
        for (std::int64_t r = 0; r < events.rows; ++r) {
          TileRow<Real> row = {};
          const Projected* const from = d_u + r * sums.H + tile * width;
          if (neurons == width) {
            for (std::int64_t i = 0; i < width; ++i) row.values[i] = value * to_state(from[i]);
          } else {
            for (std::int64_t i = 0; i < neurons; ++i) row.values[i] = value * to_state(from[i]);
          }
          for_each_one(events.bits + r * events.words(), first, last,
                       [&](std::int64_t c) LEAKYPAR_ALWAYS_INLINE { add_row(sums.at(tile, c), row.values); });
        }
      }
    });
  });
}

template <typename Real>
void add_transposed(Real* grad_weight, const NeuronTiles<Real>& sums, const Threads& threads) {
  constexpr std::int64_t width = NeuronTiles<Real>::width;
  const std::int64_t blocks = (sums.C + kBlockFeatures - 1) / kBlockFeatures;
  threads.parallel_for(sums.tiles() * blocks, kTransposedGrain<Real>, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t unit = begin; unit < end; ++unit) {
      const std::int64_t tile = unit / blocks, first = unit % blocks * kBlockFeatures;
      const std::int64_t last = std::min(first + kBlockFeatures, sums.C);
      const std::int64_t neurons = std::min(width, sums.H - tile * width);
      for (std::int64_t i = 0; i < neurons; ++i) {
        Real* const to = grad_weight + (tile * width + i) * sums.C;
        for (std::int64_t c = first; c < last; ++c) to[c] += sums.at(tile, c)[i];
      }
    }
  });
}

#define LEAKYPAR_EVENTS(Scalar)                                                                               \
  template std::optional<Scalar> pack_events(std::uint64_t*, const InputRows<Scalar>&, const Threads&);       \
  template void unpack_events(Scalar*, const EventRows&, const Threads&);                                     \
  template bool pack_weights(NeuronTiles<State<Scalar>>&, const Scalar*, std::int64_t, const Threads&);       \
  template bool all_finite(const Scalar*, std::int64_t, const Threads&);                                      \
  template void project_events(Scalar*, const EventRows&, const NeuronTiles<State<Scalar>>&, const Threads&); \
  template void add_event_gradient(NeuronTiles<State<Scalar>>&, const EventRows&, const Scalar*, const Threads&);
LEAKYPAR_EVENTS(float)
LEAKYPAR_EVENTS(double)
LEAKYPAR_EVENTS(float16)
LEAKYPAR_EVENTS(bfloat16)
#undef LEAKYPAR_EVENTS

template void add_transposed(float*, const NeuronTiles<float>&, const Threads&);
template void add_transposed(double*, const NeuronTiles<double>&, const Threads&);

}  // namespace leakypar::cpu
