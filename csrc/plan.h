// From a problem's sizes and a device's facts to a launch plan. Plain C++: no device is needed to ask, so the choice can
// be tested anywhere and read from Python.
#pragma once

#include <algorithm>
#include <cstdint>

namespace leakypar {

// How a scan over [T, M] is laid on the chip (M = N * H channels).
//   lane:  a thread owns a vector of channels and walks all of T.
//   split: a block owns a tile of channels and a chunk of time; chunks are chained by decoupled look-back.
enum class Scan : std::int32_t { lane, split };

// The split scan's tiling of time. A warp holds a run of steps in registers; a block's warps hold consecutive runs.
// Eight warps leave a thread the registers for it on every architecture; sixteen spill on compute capability 10 and 12.
struct SplitShape {
  static constexpr int run = 8;  // steps a thread holds
  int max_warps;

  constexpr int warps(std::int64_t T) const {
    return static_cast<int>(std::clamp<std::int64_t>((T + run - 1) / run, 1, max_warps));
  }
  constexpr std::int64_t chunk(std::int64_t T) const { return static_cast<std::int64_t>(warps(T)) * run; }
  constexpr std::int64_t chunks(std::int64_t T) const { return (T + chunk(T) - 1) / chunk(T); }
};

inline constexpr SplitShape split_forward{8};
inline constexpr SplitShape split_backward{8};

struct DeviceFacts {
  std::int64_t multiprocessors;  // 0: a CPU, whose one scan is the lane scan
  std::int64_t cache_bytes;      // the last-level cache that a chunk of the projection should stay in
  // Zero where they are not known, and then the fused kernel is not chosen.
  std::int64_t shared_bytes_of_block = 0;           // what one block may ask for
  std::int64_t shared_bytes_of_multiprocessor = 0;  // what the blocks of one multiprocessor have together
  std::int64_t clock_khz = 0;                       // of the multiprocessors
  std::int64_t bytes_per_second = 0;                // of the memory, both directions together
  std::int64_t capability = 0;                      // compute capability, 90 for 9.0
};

// Of a CPU's last-level cache, what a chunk can count on beside the other cores' work. docs/cpu.md has the measurement.
inline constexpr DeviceFacts cpu_facts{0, std::int64_t{4} << 20};

struct Problem {
  std::int64_t T, N, C, H;
  std::int64_t element_bytes;
};

struct Plan {
  Scan scan_forward;
  Scan scan_backward;
  std::int64_t chunk_steps;           // time steps that the forward projects at a time
  std::int64_t backward_chunk_steps;  // time steps that the backward scans and multiplies at a time
};

// A multiprocessor of an H100 needs about 16 KiB of loads in flight to draw its share of the memory's bandwidth
// (3 TB/s times some 700 ns, over 132 of them). A lane of the lane scan keeps lane_depth vectors of 16 bytes in flight,
// so the lanes fill the chip when their rows hold this many bytes for each multiprocessor.
inline constexpr std::int64_t bytes_in_flight = 16 * 1024;
inline constexpr std::int64_t lane_depth = 8;

inline Scan choose_scan(const Problem& problem, const DeviceFacts& device) {
  const std::int64_t row_bytes = problem.N * problem.H * problem.element_bytes;
  const bool lanes_fill_the_chip = row_bytes * lane_depth >= device.multiprocessors * bytes_in_flight;
  const bool too_short_to_split = problem.T <= 2;
  return lanes_fill_the_chip || too_short_to_split ? Scan::lane : Scan::split;
}

// Each product reads the weights anew, so it should have about as many rows as they have: below this many, a chunk that
// stays in the cache costs more in weights than it saves.
inline constexpr std::int64_t least_product_rows = 1024;

// The time steps of a chunk that holds at most so many bytes of [N, H] rows, or the least rows of a product. Chunks are
// made equal, so that the last one is not a sliver.
inline std::int64_t steps_within(std::int64_t bytes, const Problem& problem) {
  const std::int64_t T = std::max<std::int64_t>(problem.T, 1);
  const std::int64_t row_bytes = std::max<std::int64_t>(problem.N * problem.H * problem.element_bytes, 1);
  const std::int64_t N = std::max<std::int64_t>(problem.N, 1);
  const std::int64_t worthwhile = (least_product_rows + N - 1) / N;
  const std::int64_t fitting = std::min(std::max(bytes / row_bytes, worthwhile), T);
  const std::int64_t chunks = (T + fitting - 1) / fitting;
  return (T + chunks - 1) / chunks;
}

// Half the cache for the projection of one chunk: the other half holds the weights, the inputs that stream past and
// what is being written. A GPU's backward takes the sequence whole: two large products are worth more there than a
// gradient that is read from the cache.
inline Plan make_plan(const Problem& problem, const DeviceFacts& device) {
  const Scan scan = choose_scan(problem, device);
  const std::int64_t steps = steps_within(device.cache_bytes / 2, problem);
  const bool is_cpu = device.multiprocessors == 0;
  return {scan, scan, steps, is_cpu ? steps : std::max<std::int64_t>(problem.T, 1)};
}

// Time steps between the carries that training keeps where its backward recomputes the membrane. Carries take a
// sixteenth of the membrane's bytes at most (they are float32 also for 16-bit elements), long sequences keep 64 of them,
// and a chunk's products have 128 rows at least.
inline std::int64_t recompute_steps(std::int64_t T, std::int64_t N, std::int64_t element_bytes) {
  const std::int64_t sixteenth = element_bytes < 4 ? 32 : 16;
  return std::max({sixteenth, T / 64, 128 / std::max<std::int64_t>(N, 1)});
}

}  // namespace leakypar
