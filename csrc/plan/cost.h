// What a forward should take on a GPU, by arithmetic: project_scan, and the vendor's product a chunk at a time with the scan
// of each chunk. A plan compares the two; docs/kernels.md derives the constants and has the figures for the benchmark's
// shapes. Inference is meant: training writes the membrane on top, in both. Plain C++.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "project.h"
#include "scan.h"

namespace leakypar {

struct Cost {
  double microseconds;
  const char* bound;  // what most of the time goes to
};

namespace cost {

inline constexpr double kernel_start = 3.0;    // microseconds from one kernel's end to the next one's first results
inline constexpr double clear_start = 2.0;     // the same, of clearing the look-back's flags
inline constexpr double chain_start = 1.0;     // the first carry of a look-back scan, and each look-back over 32 tiles
inline constexpr double look_back = 1.5;       // after it
inline constexpr double memory_latency = 0.7;  // under load
inline constexpr double copied_share = 0.9;    // of the memory's bandwidth, that a copy reaches
inline constexpr double shared_bytes = 128.0;  // a clock and multiprocessor
inline constexpr double cache_bytes = 24.0;    // a clock and multiprocessor, when all of them ask
inline constexpr double most_cache_bytes = 64.0;   // when few do
inline constexpr double lanes = 128.0;             // instructions a clock and multiprocessor, counted by lanes
inline constexpr double scan_instructions = 12.0;  // an element, for compose and replay
inline constexpr double alone = 1.5;               // how much longer a scan takes on four warps than on eight

// Multiply-adds of 16-bit operands a clock and multiprocessor; TF32 has half. mma: by mma.sync, as project_scan does; vendor:
// what the vendor's products reach. Compute capability 9.0 as docs/kernels.md says, the others by their data sheets.
struct MatrixRates {
  double mma, vendor;
};

inline MatrixRates matrix_rates(std::int64_t capability) {
  if (capability >= 120) return {460.0, 460.0};
  if (capability >= 100) return {1229.0, 3400.0};
  if (capability >= 90) return {1229.0, 1705.0};
  return capability == 80 ? MatrixRates{920.0, 920.0} : MatrixRates{460.0, 460.0};
}

inline double ceil_divide(std::int64_t a, std::int64_t b) { return static_cast<double>((a + b - 1) / b); }

struct Term {
  double amount;
  const char* name;
};

inline Term longest(std::initializer_list<Term> terms) {
  return *std::max_element(terms.begin(), terms.end(), [](Term a, Term b) { return a.amount < b.amount; });
}

}  // namespace cost

inline Cost project_scan_cost(const Workload& work, const DeviceFacts& device, const ProjectTiles& tiles) {
  using namespace cost;
  const std::int64_t T = work.T, N = work.N, C = work.C, H = work.H, element_bytes = work.element_bytes();
  const bool tf32 = work.precision == Precision::tf32;
  const double columns = tiles.columns(), row_bytes = static_cast<double>(C * element_bytes);
  const auto slices = static_cast<double>(std::max<std::int64_t>(ProjectTiles::k_slices(C, element_bytes), 1));

  // Clocks of one tile. A warp of the four loads 64 rows of weights and half the columns of each slice; what it issues for
  // one is matrix loads, matrix instructions and, in TF32, three instructions to round each register.
  const double neurons = ProjectTiles::neurons, slice = ProjectTiles::k_slice_bytes, pairs = tiles.pairs();
  const double matrix =
      neurons * columns * slices * slice / element_bytes / (matrix_rates(device.capability).mma / (tf32 ? 2 : 1));
  const double issue = 4 * slices * (4 + pairs / 2 + 4 * pairs + (tf32 ? 3 * (16 + 2 * pairs) : 0));
  const double copied = columns + (tiles.weights_resident ? 0.0 : neurons);
  const double shared = slices * slice * (4 * (neurons / 2 + columns / 2) + copied) / shared_bytes;
  const double scan = scan_instructions * neurons * columns / lanes;
  const std::int64_t count = tiles.teams(N, H) * tiles.time_tiles(T);
  const auto multiprocessors = static_cast<double>(device.multiprocessors);
  const double asking = std::min<double>(multiprocessors, static_cast<double>(count));
  const double cache = (copied * row_bytes + neurons * columns * element_bytes) /
                       std::min(most_cache_bytes, cache_bytes * multiprocessors / asking);

  // Two blocks on a multiprocessor overlap one's product with the other's scan.
  const std::int64_t blocks = tiles.teams(N, H) * tiles.time_blocks;
  const std::int64_t at_once = std::min<std::int64_t>(resident_blocks(tiles, work, device),
                                                      (blocks + device.multiprocessors - 1) / device.multiprocessors);
  const Term product = longest({{matrix, "matrix instructions"},
                                {shared, "shared memory"},
                                {issue, "instructions of the product"},
                                {cache, "second-level cache"}});
  const Term tile =
      at_once > 1 ? longest({product, {scan, "scan"}}) : Term{product.amount + alone * scan, "product, then scan"};
  const double walked = ceil_divide(tiles.time_tiles(T), tiles.time_blocks) *
                        ceil_divide(blocks, device.multiprocessors) * tile.amount * 1e3 /
                        static_cast<double>(device.clock_khz);
  const double moved = (static_cast<double>(T * N) * (row_bytes + static_cast<double>(H * element_bytes)) +
                        static_cast<double>(H) * row_bytes) /
                       (copied_share * static_cast<double>(device.bytes_per_second)) * 1e6;
  const bool split = tiles.time_blocks > 1;
  const double chain =
      split ? clear_start + chain_start + look_back * static_cast<double>(tiles.time_tiles(T)) / 32 : 0.0;
  const Term most = longest({{walked, tile.name}, {moved, "memory"}, {kernel_start + chain, "launch and chain"}});
  return {std::max(walked, moved) + kernel_start + chain, most.name};
}

inline Cost chunked_cost(const Workload& work, const DeviceFacts& device, Method scan, std::int64_t gemm_chunk) {
  using namespace cost;
  const std::int64_t T = work.T, N = work.N, C = work.C, H = work.H, element_bytes = work.element_bytes();
  const std::int64_t steps = std::max<std::int64_t>(gemm_chunk, 1), rows = steps * N;
  const double chunks = ceil_divide(T, steps);
  const auto multiprocessors = static_cast<double>(device.multiprocessors);
  const double memory = copied_share * static_cast<double>(device.bytes_per_second) * 1e-6;  // bytes a microsecond
  const double clocks = static_cast<double>(device.clock_khz) * 1e-3;                        // a microsecond
  const double cache = cache_bytes * multiprocessors * clocks;
  const double x_bytes = static_cast<double>(rows * C * element_bytes);
  const double u_bytes = static_cast<double>(rows * H * element_bytes);

  // Where a chunk of u does not stay in the cache, it passes through memory both ways; the spikes are written once.
  const bool stays = u_bytes <= static_cast<double>(device.cache_bytes) / 2;
  const double spilled = stays ? 0.0 : u_bytes;

  // The product, in tiles of 128 by 128, or of 64 by 64 at half the rate where those fill the chip better; x comes from the
  // cache once for each 256 neurons.
  const auto waves = [&](std::int64_t side, double rate) {
    const std::int64_t tiles = ((rows + side - 1) / side) * ((H + side - 1) / side);
    return ceil_divide(tiles, device.multiprocessors) * static_cast<double>(side * side * C) / rate / clocks;
  };
  const double rate = matrix_rates(device.capability).vendor / (element_bytes == 4 ? 2 : 1);
  const double matrix = std::min(waves(128, rate), waves(64, rate / 2));
  const Term product = longest({{matrix, "the vendor's product"},
                                {(x_bytes + static_cast<double>(H * C * element_bytes) + spilled) / memory, "memory"},
                                {(x_bytes * ceil_divide(H, 256) + u_bytes) / cache, "second-level cache"}});
  const bool split = scan == Method::look_back;
  const double in_flight = static_cast<double>(steps) / sequential_depth * memory_latency;
  const double chain =
      split ? clear_start + chain_start + look_back * static_cast<double>(forward_tiling.tiles(steps)) / 32 : 0.0;
  const Term scanned = longest({{(u_bytes + spilled) / memory, "memory"},
                                {u_bytes / cache, "second-level cache"},
                                {split ? 0.0 : in_flight, "latency of the sequential scan"}});
  const double starts = 2 * kernel_start + chain;
  const Term most = longest({product, scanned, {starts, "launches and chain"}});
  return {chunks * (product.amount + scanned.amount + starts), most.name};
}

}  // namespace leakypar
