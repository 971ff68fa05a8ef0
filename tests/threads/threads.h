// What the programs of this folder share: threads of the standard library, values, and comparisons by bits.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "kernels.h"

// A race shows on any number of threads, and a sanitizer is slow: under one nothing is compared with a single thread's.
#ifdef __SANITIZE_THREAD__
inline constexpr bool compares = false;
inline constexpr std::array thread_counts = {3};
#else
inline constexpr bool compares = true;
inline constexpr std::array thread_counts = {1, 2, 3, 8};
#endif

// Contiguous shares of at least `grain`, as torch hands them out.
inline leakypar::cpu::Threads on_threads(int threads) {
  const auto parallel_for = [threads](std::int64_t count, std::int64_t grain,
                                      const std::function<void(std::int64_t, std::int64_t)>& body) {
    const std::int64_t tasks = std::min<std::int64_t>(threads, (count + grain - 1) / grain);
    const std::int64_t share = tasks > 0 ? (count + tasks - 1) / tasks : 0;
    std::vector<std::thread> running;
    for (std::int64_t begin = 0; begin < count; begin += share) {
      running.emplace_back([&body, begin, end = std::min(begin + share, count)] { body(begin, end); });
    }
    for (std::thread& thread : running) thread.join();
  };
  return {threads, parallel_for};
}

template <typename Value>
bool same_bits(const std::vector<Value>& one, const std::vector<Value>& other) {
  return one.size() == other.size() && std::memcmp(one.data(), other.data(), one.size() * sizeof(Value)) == 0;
}

// FNV-1a of every result on one thread.
inline std::uint64_t checksum = 0xCBF29CE484222325;

template <typename Value>
void add_to_checksum(const std::vector<Value>& values) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (std::size_t i = 0; i < values.size() * sizeof(Value); ++i) checksum = (checksum ^ bytes[i]) * 0x100000001B3;
}

template <typename Real>
std::vector<Real> drawn(std::int64_t count, std::uint32_t seed) {
  std::vector<Real> values(count);
  for (Real& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<Real>(static_cast<std::int32_t>(seed)) / Real(1u << 31);
  }
  return values;
}
