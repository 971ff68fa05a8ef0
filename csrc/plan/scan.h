// What a plan is made from, a layer's sizes and a device's facts, and how the scans of a projected input divide time.
#pragma once

#include <algorithm>
#include <cstdint>

namespace leakypar {

// What a product is computed in, and so what its operands are stored in: tf32 is float32 in memory, its operands rounded to
// 19 bits by the matrix instructions.
enum class Precision : std::int32_t { float32, tf32, float16, bfloat16, float64 };

constexpr std::int64_t bytes_of(Precision precision) {
  switch (precision) {
    case Precision::float16:
    case Precision::bfloat16:
      return 2;
    case Precision::float64:
      return 8;
    default:
      return 4;
  }
}

// The work that one call of a layer asks for.
struct Workload {
  std::int64_t T, N, C, H;
  Precision precision;

  constexpr std::int64_t element_bytes() const { return bytes_of(precision); }
};

struct DeviceFacts {
  std::int64_t multiprocessors;  // 0: a CPU, whose one scan is sequential
  std::int64_t cache_bytes;      // the last-level cache that a chunk of the projection should stay in
  // Zero where they are not known, and then project_scan is not chosen.
  std::int64_t shared_bytes_of_block = 0;           // what one block may ask for
  std::int64_t shared_bytes_of_multiprocessor = 0;  // what the blocks of one multiprocessor have together
  std::int64_t clock_khz = 0;                       // of the multiprocessors
  std::int64_t bytes_per_second = 0;                // of the memory, both directions together
  std::int64_t capability = 0;                      // compute capability, 90 for 9.0

  constexpr bool is_cpu() const { return multiprocessors == 0; }
};

// Of a CPU's last-level cache, what a chunk can count on beside the other cores' work. docs/cpu.md has the measurement.
inline constexpr DeviceFacts cpu_facts{0, std::int64_t{4} << 20};

// How the layer is computed. The first two scan a projection [T, M], M = N * H channels, that a matrix product made.
//   sequential:    a thread owns a vector of channels and walks all of T.
//   look_back:     a block owns a tile of channels and a tile of time; tiles of time are chained by decoupled look-back.
//   project_scan:  product and scan in one kernel. Forward only.
enum class Method : std::int32_t { sequential, look_back, project_scan };

// Of so many steps at a time a sequential scan leaves the parameters' sums, for the caller to add up: a sum that runs on
// rounds at every step, and over a long sequence that shows.
inline constexpr std::int64_t summed_steps = 256;

// How a look-back scan divides time. A warp holds a run of steps in registers; a block's warps hold consecutive runs.
// Eight warps leave a thread the registers for it on every architecture; sixteen spill on compute capability 10 and 12.
struct TimeTiling {
  static constexpr int run = 8;  // steps a thread holds
  int max_warps;

  constexpr int warps(std::int64_t T) const {
    return static_cast<int>(std::clamp<std::int64_t>((T + run - 1) / run, 1, max_warps));
  }
  constexpr std::int64_t steps(std::int64_t T) const { return static_cast<std::int64_t>(warps(T)) * run; }
  constexpr std::int64_t tiles(std::int64_t T) const { return (T + steps(T) - 1) / steps(T); }
};

inline constexpr TimeTiling forward_tiling{8};
inline constexpr TimeTiling backward_tiling{8};

// A multiprocessor of an H100 needs about 16 KiB of loads in flight to draw its share of the memory's bandwidth
// (3 TB/s times some 700 ns, over 132 of them). A thread of the sequential scan keeps sequential_depth vectors of 16 bytes
// in flight, so the threads fill the chip when their rows hold this many bytes for each multiprocessor.
inline constexpr std::int64_t bytes_in_flight = 16 * 1024;
inline constexpr int sequential_depth = 16;

inline Method choose_scan(const Workload& work, const DeviceFacts& device) {
  const std::int64_t row_bytes = work.N * work.H * work.element_bytes();
  const bool threads_fill_the_chip = row_bytes * sequential_depth >= device.multiprocessors * bytes_in_flight;
  const bool too_short_to_split = work.T <= 2;
  return threads_fill_the_chip || too_short_to_split ? Method::sequential : Method::look_back;
}

// Each product reads the weights anew, so it should have about as many rows as they have: below this many, a chunk that
// stays in the cache costs more in weights than it saves.
inline constexpr std::int64_t least_product_rows = 1024;

// The time steps of a chunk that holds at most so many bytes of [N, H] rows, or the least rows of a product. Chunks are
// made equal, so that the last one is not a sliver.
inline std::int64_t steps_within(std::int64_t bytes, const Workload& work) {
  const std::int64_t T = std::max<std::int64_t>(work.T, 1);
  const std::int64_t row_bytes = std::max<std::int64_t>(work.N * work.H * work.element_bytes(), 1);
  const std::int64_t N = std::max<std::int64_t>(work.N, 1);
  const std::int64_t worthwhile = (least_product_rows + N - 1) / N;
  const std::int64_t fitting = std::min(std::max(bytes / row_bytes, worthwhile), T);
  const std::int64_t chunks = (T + fitting - 1) / fitting;
  return (T + chunks - 1) / chunks;
}

}  // namespace leakypar
