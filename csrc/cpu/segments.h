// Time cut into segments, where a long sequence has so few channels that sharing them out leaves most threads idle.
//
// Every segment but the last is first reduced to one map a channel from the membrane before it to the membrane after
// (math/clamp_affine.h), all at once; the maps are folded into the carry of each segment; then every segment is scanned
// from its carry, all at once. The first pass costs some two and a half scans, so threads must outnumber the tiles' own
// four to one. The carries are rounded otherwise than step by step would: here alone, bits depend on the threads.
//
// Not so where a decay is beyond 1: there what is rounded otherwise grows, and a membrane near its unstable fixed point may
// be carried to either side of it. The carries of these channels are walked step by step, one thread for a few channels, and
// only the scan itself is shared out. A result then is that of one thread, to the bit.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../math/clamp_affine.h"
#include "tile.h"

namespace leakypar::cpu {

struct Segments {
  std::int64_t count, length;  // of each, in time steps, but for the last; a count of 1 is no cut

  template <typename Real>
  static Segments of(std::int64_t T, std::int64_t M, int threads) {
    constexpr std::int64_t kShortest = 1024;  // steps worth the fold and a thread
    const std::int64_t shares = (M + kBlock - 1) / kBlock;
    if (threads < 4 * shares || M > kTileWidth<Real>) return {1, T};
    const std::int64_t count = std::min<std::int64_t>(threads, T / kShortest);
    if (count < 4) return {1, T};
    return {count, (T + count - 1) / count};
  }

  std::int64_t first(std::int64_t segment) const { return segment * length; }
  std::int64_t steps(std::int64_t segment, std::int64_t T) const { return std::min(length, T - first(segment)); }
};

// Runs body(span) for every block of channels of which one has a decay beyond 1.
template <typename Real, typename Body>
void for_each_growing(const Real* decay, std::int64_t M, const Threads& threads, const Body& body) {
  const std::int64_t blocks = (M + kBlock - 1) / kBlock;
  threads.parallel_for(blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
      const Span span = {block * kBlock, std::min(kBlock, M - block * kBlock)};
      if (std::any_of(decay + span.first, decay + span.first + span.width, grows<Real>)) body(span);
    }
  });
}

}  // namespace leakypar::cpu
