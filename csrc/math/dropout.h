// Dropout of the membrane, as the threshold sees it: element e of a [T, N, H] trace is seen as f_e h_e with
//
//   f_e = 1 / (1 - p) with probability 1 - p, else 0.
//
// No mask is stored. f_e is a function of a seed and of e alone: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel
// random numbers: as easy as 1, 2, 3", SC 2011) with the seed for a key turns the counter e / 4 into four words, and word
// e mod 4 is the element's. So both directions, every chunk, every scan and every thread see the same factors. The seed
// lies in the device's memory, where torch's generator left it: nothing waits for it, and a replayed graph draws anew.
#pragma once

#include <cstdint>

#include "scalar.h"

namespace leakypar {

struct Dropout {
  const std::int64_t* seed;  // one value, or null for no dropout
  std::int32_t dropped;      // of the 2^24 values that a word's upper bits take, how many drop an element
  double scale;              // 1 / (1 - p)
  std::int64_t first;        // the element that the arrays of a call begin with

  static constexpr int resolution = 24;  // bits; they fit a signed comparison, which every vector unit has
};

struct PhiloxWords {
  std::uint32_t word[4];
};

LEAKYPAR_HOST_DEVICE PhiloxWords philox(std::uint64_t seed, std::uint64_t counter) {
  std::uint32_t key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  std::uint32_t c0 = static_cast<std::uint32_t>(counter), c1 = static_cast<std::uint32_t>(counter >> 32), c2 = 0,
                c3 = 0;
#ifdef __CUDA_ARCH__
#pragma unroll
#else
#pragma GCC unroll 10  // a loop over counters is vectorised only if it has no loop inside
#endif
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t even = std::uint64_t{0xD2511F53} * c0, odd = std::uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<std::uint32_t>(odd >> 32) ^ c1 ^ key0;
    c1 = static_cast<std::uint32_t>(odd);
    c2 = static_cast<std::uint32_t>(even >> 32) ^ c3 ^ key1;
    c3 = static_cast<std::uint32_t>(even);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

LEAKYPAR_HOST_DEVICE bool kept(const Dropout& dropout, std::uint32_t word) {
  return static_cast<std::int32_t>(word >> (32 - Dropout::resolution)) >= dropout.dropped;
}

}  // namespace leakypar
