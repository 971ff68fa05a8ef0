// The launch plan of project_scan: the tile that a block takes, where the weights stay, and how time is split. Plain C++.
#pragma once

#include <algorithm>
#include <cstdint>

#include "plan.h"

namespace leakypar {

// A tile is a product of 128 neurons by 16 Pairs columns, a column being one time step of one batch row. Two of a block's
// four warps share the neurons and two the columns, so that each multiplies 64 neurons by 8 Pairs columns; one lane
// holds 8 neurons and a run of 2 Pairs consecutive steps of one batch row, and a tile has 8 runs.
struct ProjectPlan {
  bool wide;                      // 128 columns a tile, otherwise 64
  std::int32_t batch_rows;        // of a tile: 1, 2, 4 or 8; its 8 runs lie side by side in batch, the rest in time
  std::int32_t stages;            // slices of x in flight or in use
  bool resident;                  // all of the tile's weights stay in shared memory
  std::int64_t blocks_per_group;  // blocks that take turns at the tiles of a group in time; 1: one walks all of time

  static constexpr int neurons = 128, runs = 8, threads = 128;
  static constexpr int slice_bytes = 128;  // of k, of every row: one row of shared memory
  static constexpr int max_stages = 4;
  static constexpr int map_pitch = neurons + 8;  // four runs then begin eight banks apart

  constexpr int pairs() const { return wide ? 8 : 4; }
  constexpr int run() const { return 2 * pairs(); }
  constexpr int columns() const { return 16 * pairs(); }
  constexpr int steps() const { return columns() / batch_rows; }

  constexpr std::int64_t time_tiles(std::int64_t T) const { return (T + steps() - 1) / steps(); }
  constexpr std::int64_t neuron_tiles(std::int64_t H) const { return (H + neurons - 1) / neurons; }
  constexpr std::int64_t groups(std::int64_t N, std::int64_t H) const {
    return neuron_tiles(H) * ((N + batch_rows - 1) / batch_rows);
  }

  static constexpr std::int64_t slices(std::int64_t C, std::int64_t element_bytes) {
    return (C * element_bytes + slice_bytes - 1) / slice_bytes;
  }

  // A block's shared memory: slices of the weights and of x; three numbers a map, a map for each run and neuron; the
  // carry of each batch row and neuron; four parameters a neuron; and a ticket.
  constexpr std::int64_t shared_bytes(std::int64_t C, std::int64_t element_bytes) const {
    const std::int64_t weight_slices = resident ? std::max<std::int64_t>(slices(C, element_bytes), 1) : stages;
    const std::int64_t numbers = 3 * runs * map_pitch + batch_rows * neurons + 4 * neurons;
    return (weight_slices * neurons + stages * columns()) * slice_bytes + numbers * 4 + 16;
  }
};

// Given tiles, for a problem other than the one that they were chosen for: no more stages than there are slices, and no
// more blocks of a group than tiles in time.
inline ProjectPlan fitted(ProjectPlan plan, const Problem& problem) {
  const std::int64_t slices = std::max<std::int64_t>(ProjectPlan::slices(problem.C, problem.element_bytes), 1);
  plan.stages = static_cast<std::int32_t>(std::min<std::int64_t>(plan.stages, slices));
  plan.blocks_per_group =
      std::clamp<std::int64_t>(plan.blocks_per_group, 1, std::max<std::int64_t>(plan.time_tiles(problem.T), 1));
  return plan;
}

// A multiprocessor is busy with two blocks: one multiplies while the other scans.
inline constexpr std::int64_t busy_blocks = 2;

// Blocks that fit on one multiprocessor at once: by registers, of which a wide tile leaves room for two blocks and a narrow
// one for three, and by shared memory, of which each block takes another KiB.
inline std::int64_t resident_blocks(const ProjectPlan& plan, const Problem& problem, const DeviceFacts& device) {
  const std::int64_t bytes = plan.shared_bytes(problem.C, problem.element_bytes);
  if (bytes > device.shared_bytes_of_block) return 0;
  return std::min<std::int64_t>(plan.wide ? 2 : 3, device.shared_bytes_of_multiprocessor / (bytes + 1024));
}

// The weights stay in shared memory wherever a block of two stages still fits, since weights that are read again for each
// tile cost as much of the cache's bandwidth as x does. Then as many stages as leave a multiprocessor its blocks.
inline void choose_slots(ProjectPlan& plan, const Problem& problem, const DeviceFacts& device) {
  const std::int64_t slices = std::max<std::int64_t>(ProjectPlan::slices(problem.C, problem.element_bytes), 1);
  const auto blocks = [&] { return std::min(busy_blocks, resident_blocks(plan, problem, device)); };
  plan.stages = static_cast<std::int32_t>(std::min<std::int64_t>(2, slices));
  plan.resident = true;
  if (blocks() == 0) plan.resident = false;
  const std::int64_t kept = blocks();
  const std::int64_t most = std::min<std::int64_t>(slices, ProjectPlan::max_stages);
  while (plan.stages < most) {
    ++plan.stages;
    if (blocks() == kept) continue;
    --plan.stages;
    return;
  }
}

// Of the tilings that leave few columns empty: the most batch rows whose groups still fill the chip, so that each block walks
// many tiles with the weights it has; where no tiling does, the fewest, whose tiles are the longest in time, since time is
// then split over blocks and each tile hands five numbers a channel on.
inline std::int32_t choose_batch_rows(ProjectPlan plan, const Problem& problem, const DeviceFacts& device) {
  constexpr std::int32_t choices[] = {8, 4, 2, 1};
  const auto columns = [&](std::int32_t rows) {
    plan.batch_rows = rows;
    return plan.time_tiles(problem.T) * plan.steps() * ((problem.N + rows - 1) / rows * rows);
  };
  std::int64_t least = columns(1);
  for (const std::int32_t rows : choices) least = std::min(least, columns(rows));
  const std::int64_t few = least + least / 8;
  std::int32_t chosen = 1;
  for (const std::int32_t rows : choices) {
    if (columns(rows) > few) continue;
    chosen = rows;
    choose_slots(plan, problem, device);
    const std::int64_t blocks = resident_blocks(plan, problem, device) * device.multiprocessors;
    if (plan.groups(problem.N, problem.H) >= blocks) break;
  }
  return chosen;
}

// A plan without stages is one that the device has no room for. Tiles are of the width that leaves the busiest multiprocessor
// fewer columns to compute, and wide where that is equal. Where the groups of tiles are too few to fill the chip, as many
// blocks share a group as run at once.
inline ProjectPlan make_project_plan(const Problem& problem, const DeviceFacts& device) {
  const bool empty = problem.T == 0 || problem.N == 0 || problem.H == 0;
  if (empty || device.multiprocessors == 0 || problem.element_bytes > 4) return {};
  const auto of_width = [&](bool wide) {
    ProjectPlan plan = {};
    plan.wide = wide;
    plan.batch_rows = choose_batch_rows(plan, problem, device);
    return plan;
  };
  const auto busiest = [&](const ProjectPlan& plan) {
    const std::int64_t tiles = plan.groups(problem.N, problem.H) * plan.time_tiles(problem.T);
    return (tiles + device.multiprocessors - 1) / device.multiprocessors * plan.columns();
  };
  const ProjectPlan wide = of_width(true), narrow = of_width(false);
  ProjectPlan plan = busiest(wide) <= busiest(narrow) ? wide : narrow;
  choose_slots(plan, problem, device);
  const std::int64_t blocks = resident_blocks(plan, problem, device) * device.multiprocessors;
  if (blocks == 0) return {};
  plan.blocks_per_group =
      std::clamp<std::int64_t>(blocks / plan.groups(problem.N, problem.H), 1, plan.time_tiles(problem.T));
  return plan;
}

}  // namespace leakypar
