// The division of a [T, M] matrix, M = N * H channels, into tiles: neighbouring columns that one thread walks in time
// order, row by row, with the state of each column in level-1 cache.
//
// A channel belongs to one tile and is computed by the same operations wherever the tile begins: the results do not
// depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../kernels.h"

namespace leakypar::cpu {

// Channels of the widest tile: at 2 KiB an array, all that a tile keeps and the rows that stream past it fit level 1.
template <typename Real>
inline constexpr std::int64_t kTileWidth = 2048 / sizeof(Real);

// Channels that threads share out at a time.
inline constexpr std::int64_t kBlock = 16;

// One value per column of a tile.
template <typename Real>
struct alignas(64) Columns {
  Real values[kTileWidth<Real>];

  Real& operator[](std::int64_t column) { return values[column]; }
  const Real& operator[](std::int64_t column) const { return values[column]; }
};

// Where a tile lies: channels [first, first + width) of the M.
struct Span {
  std::int64_t first, width;
};

// Runs body(span) for every tile. Threads share out blocks of kBlock channels, so that the rows of two threads seldom
// share a cache line and few channels still occupy many threads; a thread joins its blocks into wide tiles.
// Below `worth` elements another thread costs more than it saves: waking one takes some 50 microseconds.
template <typename Real, typename Body>
void for_each_tile(std::int64_t T, std::int64_t M, std::int64_t worth, const Threads& threads, const Body& body) {
  if (M == 0) return;
  const std::int64_t blocks = (M + kBlock - 1) / kBlock;
  const std::int64_t grain = std::max<std::int64_t>(1, worth / kBlock / std::max<std::int64_t>(1, T));
  threads.parallel_for(blocks, grain, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t last = std::min(end * kBlock, M);
    for (std::int64_t first = begin * kBlock; first < last; first += kTileWidth<Real>) {
      body(Span{first, std::min(kTileWidth<Real>, last - first)});
    }
  });
}

// Runs body(part, n) for the part of a tile that each sequence n of the batch has.
template <typename Body>
void for_each_sequence(Span span, std::int64_t H, const Body& body) {
  const std::int64_t last = span.first + span.width;
  for (std::int64_t first = span.first; first < last;) {
    const std::int64_t n = first / H, next = std::min((n + 1) * H, last);
    body(Span{first, next - first}, n);
    first = next;
  }
}

// How many values of a neuron's parameter a scan lays out, so that those of any tile are neighbours.
template <typename Real>
std::int64_t repetition(std::int64_t H, std::int64_t M) {
  return std::min(M, H + kTileWidth<Real>);
}

template <typename Real>
void fill_zeros(Span span, Columns<Real>& columns) {
  std::fill_n(columns.values, span.width, Real(0));
}

// Copies the tile's part of an [N, H] array; an absent one reads as zeros.
template <typename Real>
void load_state(const Real* source, Span span, Columns<Real>& columns) {
  if (source == nullptr) return fill_zeros(span, columns);
  std::copy_n(source + span.first, span.width, columns.values);
}

// Writes the tile's part of an [N, H] array, unless nobody wants it.
template <typename Real>
void store_state(const Columns<Real>& columns, Span span, Real* target) {
  if (target != nullptr) std::copy_n(columns.values, span.width, target + span.first);
}

}  // namespace leakypar::cpu
