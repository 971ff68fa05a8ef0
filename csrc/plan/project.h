// The tiles of project_scan: what a block computes at a time, where the weights stay, and how time is split. Plain C++.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "scan.h"

namespace leakypar {

// A tile is a product of 128 neurons by 16 Pairs columns, a column being one time step of one batch row. Two of a block's
// four warps share the neurons and two the columns, so that each multiplies 64 neurons by 8 Pairs columns; one lane
// holds 8 neurons and a run of 2 Pairs consecutive steps of one batch row, and a tile has 8 runs.
struct ProjectTiles {
  bool wide;                 // 128 columns a tile, otherwise 64
  std::int32_t batch_rows;   // of a tile: 1, 2, 4 or 8; its 8 runs lie side by side in batch, the rest in time
  std::int32_t stages;       // k-slices of x in flight or in use
  bool weights_resident;     // all of the tile's weights stay in shared memory
  std::int64_t time_blocks;  // blocks of a team, which take turns at its tiles in time; 1: one walks all of time

  static constexpr int neurons = 128, runs = 8, threads = 128;
  static constexpr int k_slice_bytes = 128;  // of k, of every row: one row of shared memory
  static constexpr int max_stages = 4;
  static constexpr int map_pitch = neurons + 8;  // four runs then begin eight banks apart

  constexpr int pairs() const { return wide ? 8 : 4; }
  constexpr int run() const { return 2 * pairs(); }
  constexpr int columns() const { return 16 * pairs(); }
  constexpr int steps() const { return columns() / batch_rows; }

  constexpr std::int64_t time_tiles(std::int64_t T) const { return (T + steps() - 1) / steps(); }
  constexpr std::int64_t neuron_tiles(std::int64_t H) const { return (H + neurons - 1) / neurons; }
  // A team of blocks shares 128 neurons and the batch rows of a tile, for all of time.
  constexpr std::int64_t teams(std::int64_t N, std::int64_t H) const {
    return neuron_tiles(H) * ((N + batch_rows - 1) / batch_rows);
  }

  // A k-slice is the part of a product's inner dimension that passes through shared memory at a time.
  static constexpr std::int64_t k_slices(std::int64_t C, std::int64_t element_bytes) {
    return (C * element_bytes + k_slice_bytes - 1) / k_slice_bytes;
  }

  // A block's shared memory: k-slices of the weights and of x; three numbers a map, a map for each run and neuron; the
  // carry of each batch row and neuron; four parameters a neuron; and a ticket.
  constexpr std::int64_t shared_bytes(std::int64_t C, std::int64_t element_bytes) const {
    const std::int64_t weight_slices =
        weights_resident ? std::max<std::int64_t>(k_slices(C, element_bytes), 1) : stages;
    const std::int64_t numbers = 3 * runs * map_pitch + batch_rows * neurons + 4 * neurons;
    return (weight_slices * neurons + stages * columns()) * k_slice_bytes + numbers * 4 + 16;
  }
};

// Tiles for other work than they were chosen for: no more stages than there are k-slices, and no more blocks of a team than
// tiles in time.
inline ProjectTiles fitted(ProjectTiles tiles, const Workload& work) {
  const std::int64_t slices = std::max<std::int64_t>(ProjectTiles::k_slices(work.C, work.element_bytes()), 1);
  tiles.stages = static_cast<std::int32_t>(std::min<std::int64_t>(tiles.stages, slices));
  tiles.time_blocks =
      std::clamp<std::int64_t>(tiles.time_blocks, 1, std::max<std::int64_t>(tiles.time_tiles(work.T), 1));
  return tiles;
}

// A multiprocessor is busy with two blocks: one multiplies while the other scans.
inline constexpr std::int64_t busy_blocks = 2;

// Blocks that fit on one multiprocessor at once: by registers, of which a wide tile leaves room for two blocks and a narrow
// one for three (two in TF32), and by shared memory, of which each block takes another KiB.
inline std::int64_t resident_blocks(const ProjectTiles& tiles, const Workload& work, const DeviceFacts& device) {
  const std::int64_t bytes = tiles.shared_bytes(work.C, work.element_bytes());
  if (bytes > device.shared_bytes_of_block) return 0;
  return std::min<std::int64_t>(tiles.wide || work.element_bytes() == 4 ? 2 : 3,
                                device.shared_bytes_of_multiprocessor / (bytes + 1024));
}

// The weights stay in shared memory wherever a block of two stages still fits, since weights that are read again for each
// tile cost as much of the cache's bandwidth as x does. Then as many stages as leave a multiprocessor its blocks.
inline void choose_slots(ProjectTiles& tiles, const Workload& work, const DeviceFacts& device) {
  const std::int64_t slices = std::max<std::int64_t>(ProjectTiles::k_slices(work.C, work.element_bytes()), 1);
  const auto blocks = [&] { return std::min(busy_blocks, resident_blocks(tiles, work, device)); };
  tiles.stages = static_cast<std::int32_t>(std::min<std::int64_t>(2, slices));
  tiles.weights_resident = true;
  if (blocks() == 0) tiles.weights_resident = false;
  const std::int64_t kept = blocks();
  const std::int64_t most = std::min<std::int64_t>(slices, ProjectTiles::max_stages);
  while (tiles.stages < most) {
    ++tiles.stages;
    if (blocks() == kept) continue;
    --tiles.stages;
    return;
  }
}

// Of the tilings that leave few columns empty: the most batch rows whose teams still fill the chip, so that each block walks
// many tiles with the weights it has; where no tiling does, the fewest, whose tiles are the longest in time, since time is
// then split over blocks and each tile hands five numbers a channel on.
inline std::int32_t choose_batch_rows(ProjectTiles tiles, const Workload& work, const DeviceFacts& device) {
  constexpr std::int32_t choices[] = {8, 4, 2, 1};
  const auto columns = [&](std::int32_t rows) {
    tiles.batch_rows = rows;
    return tiles.time_tiles(work.T) * tiles.steps() * ((work.N + rows - 1) / rows * rows);
  };
  std::int64_t least = columns(1);
  for (const std::int32_t rows : choices) least = std::min(least, columns(rows));
  const std::int64_t few = least + least / 8;
  std::int32_t chosen = 1;
  for (const std::int32_t rows : choices) {
    if (columns(rows) > few) continue;
    chosen = rows;
    choose_slots(tiles, work, device);
    const std::int64_t blocks = resident_blocks(tiles, work, device) * device.multiprocessors;
    if (tiles.teams(work.N, work.H) >= blocks) break;
  }
  return chosen;
}

// The best tiles of one width; nothing where the device has no room for them, or there is nothing to compute. Where the teams
// are too few to fill the chip, as many blocks share one as run at once.
inline std::optional<ProjectTiles> tiles_of_width(bool wide, const Workload& work, const DeviceFacts& device) {
  const bool empty = work.T == 0 || work.N == 0 || work.H == 0;
  if (empty || device.is_cpu() || work.element_bytes() > 4) return std::nullopt;
  ProjectTiles tiles = {};
  tiles.wide = wide;
  tiles.batch_rows = choose_batch_rows(tiles, work, device);
  choose_slots(tiles, work, device);
  const std::int64_t blocks = resident_blocks(tiles, work, device) * device.multiprocessors;
  if (blocks == 0) return std::nullopt;
  tiles.time_blocks = std::clamp<std::int64_t>(blocks / tiles.teams(work.N, work.H), 1, tiles.time_tiles(work.T));
  return tiles;
}

}  // namespace leakypar
