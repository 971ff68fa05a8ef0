// What a forward should take on a GPU, by arithmetic: project_scan, and the vendor's product a chunk at a time with the scan
// of each chunk. A plan compares the two; docs/kernels.md derives the constants and has the figures for the benchmark's
// shapes. Inference is meant: training writes the membrane on top, in both. Plain C++.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>

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
inline constexpr double copied_share = 0.87;   // of the memory's bandwidth, that a copy reaches
inline constexpr double cache_bytes = 27.5;    // a clock and multiprocessor, when all of them ask
inline constexpr double most_cache_bytes = 64.0;  // when few do
inline constexpr double narrow_copy_clocks =
    12.0;  // of each copy of four bytes or fewer: they have a loop of their own

// Multiply-adds of 16-bit operands a clock and multiprocessor; TF32 has half. mma: by mma.sync, as project_scan does; vendor:
// what the vendor's products reach. tools/chip.py has the source for compute capability 9.0; the others are by their data
// sheets, GeForce cards with sums in float32.
struct MatrixRates {
  double mma, vendor;
};

inline MatrixRates matrix_rates(std::int64_t capability) {
  if (capability >= 120) return {256.0, 256.0};
  if (capability >= 100) return {1331.0, 3400.0};
  if (capability >= 90) return {1331.0, 1705.0};
  return capability == 80 ? MatrixRates{920.0, 920.0} : MatrixRates{256.0, 256.0};
}

// A tile's clocks on a multiprocessor that has so many blocks of project_scan at once, a tile of each in turn: of a k-slice,
// and of all but the k-slices. As `make simulate` prints them for compute capability 9.0.
struct TileClocks {
  double slice, rest;
};

inline TileClocks tile_clocks(bool wide, bool tf32, std::int64_t at_once) {
  // [TF32][wide][at_once - 1]
  constexpr TileClocks simulated[2][2][3] = {
      {{{1162, 5792}, {711, 3405}, {521, 2797}}, {{1446, 7778}, {983, 3980}}},
      {{{2313, 5812}, {1246, 3393}}, {{1449, 7657}, {986, 4741}}},
  };
  return simulated[tf32][wide][std::clamp<std::int64_t>(at_once, 1, wide || tf32 ? 2 : 3) - 1];
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

  const double neurons = ProjectTiles::neurons, slice = ProjectTiles::k_slice_bytes;
  const std::int64_t blocks = tiles.teams(N, H) * tiles.time_blocks;
  const std::int64_t at_once = std::min<std::int64_t>(resident_blocks(tiles, work, device),
                                                      (blocks + device.multiprocessors - 1) / device.multiprocessors);

  // Clocks of one tile. A slower matrix unit than the simulated one is what a k-slice waits for.
  const TileClocks simulated = tile_clocks(tiles.wide, tf32, at_once);
  const double matrix = neurons * columns * slice / static_cast<double>(element_bytes) /
                        (matrix_rates(device.capability).mma / (tf32 ? 2 : 1));
  const double copied = columns + (tiles.weights_resident ? 0.0 : neurons);
  const std::int64_t copy_bytes = (C * element_bytes) % 4 == 0 ? 4 : element_bytes;
  const bool narrow = (C * element_bytes) % 8 != 0;
  const double copying =
      narrow ? copied * slice / static_cast<double>(copy_bytes * ProjectTiles::threads) * narrow_copy_clocks : 0.0;
  const std::int64_t count = tiles.teams(N, H) * tiles.time_tiles(T);
  const auto multiprocessors = static_cast<double>(device.multiprocessors);
  const double asking = std::min<double>(multiprocessors, static_cast<double>(count));
  const double share = std::min(most_cache_bytes, cache_bytes * multiprocessors / asking);
  const double cache = (copied * row_bytes + neurons * columns * static_cast<double>(element_bytes)) / share;
  const double product = slices * (std::max(simulated.slice, matrix) + copying);
  const Term tile = longest(
      {{product + simulated.rest, product > simulated.rest ? "product" : "scan"}, {cache, "second-level cache"}});

  // Weights that stay come once a block, before there is anything to multiply.
  const double weights = tiles.weights_resident ? neurons * row_bytes / share : 0.0;
  const double of_block = ceil_divide(tiles.time_tiles(T), tiles.time_blocks) * tile.amount + weights;
  const double walked =
      ceil_divide(blocks, device.multiprocessors) * of_block * 1e3 / static_cast<double>(device.clock_khz);
  const double moved = (static_cast<double>(T * N) * (row_bytes + static_cast<double>(H * element_bytes)) +
                        static_cast<double>(H) * row_bytes) /
                       (copied_share * static_cast<double>(device.bytes_per_second)) * 1e6;
  const bool split = tiles.time_blocks > 1;
  const double chain =
      split ? clear_start + chain_start + look_back * static_cast<double>(tiles.time_tiles(T)) / 32 : 0.0;
  const Term most = longest({{walked, tile.name}, {moved, "memory"}, {kernel_start + chain, "launch and chain"}});
  return {std::max(walked, moved) + kernel_start + chain, most.name};
}

// Tiles of the width that should take less time; wide ones where that is equal, or the device's rates are not known.
inline std::optional<ProjectTiles> choose_tiles(const Workload& work, const DeviceFacts& device) {
  const auto wide = tiles_of_width(true, work, device), narrow = tiles_of_width(false, work, device);
  if (!wide || !narrow) return wide ? wide : narrow;
  const auto microseconds = [&](const ProjectTiles& tiles) {
    return project_scan_cost(work, device, tiles).microseconds;
  };
  return microseconds(*narrow) < microseconds(*wide) ? narrow : wide;
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

// Microseconds that a backward saves by scanning and multiplying `steps` at a time, by the sequential scan. The projection's
// gradient is written once and read by two products: through the cache instead of memory, where a chunk of it stays there and
// the whole does not; each chunk more starts three kernels.
inline double backward_saving(const Workload& work, const DeviceFacts& device, std::int64_t steps) {
  using namespace cost;
  const double bytes = static_cast<double>(work.T * work.N * work.H * work.element_bytes());
  if (bytes <= static_cast<double>(device.cache_bytes) / 2) return 0.0;
  const double memory = copied_share * static_cast<double>(device.bytes_per_second) * 1e-6;
  const double cache = cache_bytes * static_cast<double>(device.multiprocessors * device.clock_khz) * 1e-3;
  const double starts = 3 * kernel_start * (ceil_divide(work.T, steps) - 1);
  return 3 * bytes * (1 / memory - 1 / cache) - starts;
}

}  // namespace leakypar
