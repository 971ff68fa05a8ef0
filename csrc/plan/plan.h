// From a layer's sizes, a device's facts and what a user asks for, to a plan. This is the only place that chooses, and the
// only one that checks what is asked for: the operators and leakypar.plan() both come here. Plain C++: no device is needed
// to ask.
#pragma once

#include <algorithm>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cost.h"

namespace leakypar {

// What a user forces of a plan; the rest is chosen.
struct Request {
  std::optional<Method> forward, backward;
  std::optional<std::int64_t> gemm_chunk, backward_gemm_chunk;
  std::optional<ProjectTiles> tiles;
  std::optional<double> event_rate, backward_event_rate;
  // Training keeps checkpoints of the membrane, one every gemm_chunk steps, and its backward rebuilds the rest by the same
  // products: the interval is the caller's, and the same for both directions.
  bool recompute = false;
};

struct Plan {
  Method forward, backward;
  std::int64_t gemm_chunk;            // time steps that the forward projects at a time
  std::int64_t backward_gemm_chunk;   // time steps that the backward scans and multiplies at a time
  std::optional<ProjectTiles> tiles;  // of project_scan, and only there
  // The shares of ones up to which an input of zeros and ones is multiplied by additions alone, in the projection and for
  // the gradient of the weights; 0 where none is looked for. On a CPU, and only there.
  double event_rate, backward_event_rate;
};

// Up to these shares of ones additions take less time than the dense product does (docs/events.md), in work of at least this
// size: the weights are laid out anew for each call, however many chunks it has.
inline constexpr double most_ones_forward = 0.4, most_ones_backward = 0.3;
inline constexpr std::int64_t least_event_rows = 256, least_event_features = 32, least_event_neurons = 32;

inline constexpr const char* method_names[] = {"sequential", "look_back", "project_scan"};

inline Method method_from(const std::string& name) {
  for (const Method method : {Method::sequential, Method::look_back, Method::project_scan}) {
    if (name == method_names[static_cast<int>(method)]) return method;
  }
  throw std::invalid_argument("plan: a method must be 'sequential', 'look_back' or 'project_scan', got '" + name + "'");
}

[[noreturn]] inline void refuse_plan(const std::string& why) { throw std::invalid_argument("plan: " + why); }

// What holds for every size and device.
inline void check(const Request& asked) {
  if (asked.backward == Method::project_scan) {
    refuse_plan("backward must be 'sequential' or 'look_back', got 'project_scan'");
  }
  const auto check_chunk = [](const char* name, const std::optional<std::int64_t>& steps) {
    if (steps && *steps < 1) refuse_plan(std::string(name) + " must be at least 1, got " + std::to_string(*steps));
  };
  check_chunk("gemm_chunk", asked.gemm_chunk);
  check_chunk("backward_gemm_chunk", asked.backward_gemm_chunk);
  const auto check_rate = [](const char* name, const std::optional<double>& rate) {
    if (rate && !(*rate >= 0 && *rate <= 1)) {
      refuse_plan(std::string(name) + " must be from 0 to 1, got " + std::to_string(*rate));
    }
  };
  check_rate("event_rate", asked.event_rate);
  check_rate("backward_event_rate", asked.backward_event_rate);
  if (asked.tiles && asked.forward != Method::project_scan) {
    refuse_plan("tiles must be None unless forward is 'project_scan'");
  }
  if (asked.recompute && !(asked.gemm_chunk && asked.gemm_chunk == asked.backward_gemm_chunk)) {
    refuse_plan("checkpoints need one gemm_chunk for both directions");
  }
  if (asked.forward == Method::project_scan && asked.recompute) {
    refuse_plan("'project_scan' does not go with recompute=True, whose backward projects in chunks");
  }
}

// What holds for this work on this device.
inline void check(const ProjectTiles& tiles, const Workload& work, const DeviceFacts& device) {
  const std::int64_t k_slices = ProjectTiles::k_slices(work.C, work.element_bytes());
  if (tiles.stages < 2 && k_slices > 1) {
    refuse_plan("tiles has stages 1, expected 2 or more where C = " + std::to_string(work.C) + " takes " +
                std::to_string(k_slices) + " k-slices");
  }
  const std::int64_t bytes = tiles.shared_bytes(work.C, work.element_bytes());
  if (bytes > device.shared_bytes_of_block) {
    refuse_plan("tiles of columns " + std::to_string(tiles.columns()) + ", batch_rows " +
                std::to_string(tiles.batch_rows) + ", stages " + std::to_string(tiles.stages) + ", weights_resident " +
                std::to_string(tiles.weights_resident) + " take " + std::to_string(bytes) +
                " bytes of shared memory, a block of the device has " + std::to_string(device.shared_bytes_of_block));
  }
}

// Tiles as a user writes them: columns, batch_rows, stages, weights_resident, time_blocks.
inline ProjectTiles tiles_from(const std::vector<std::int64_t>& values) {
  constexpr const char* names[] = {"columns", "batch_rows", "stages", "weights_resident", "time_blocks"};
  if (values.size() != std::size(names)) {
    refuse_plan("tiles has " + std::to_string(values.size()) +
                " values, expected columns, batch_rows, stages, weights_resident, time_blocks");
  }
  const auto one_of = [&](std::size_t at, std::initializer_list<std::int64_t> allowed) {
    if (std::find(allowed.begin(), allowed.end(), values[at]) == allowed.end()) {
      std::string listed;
      for (const std::int64_t value : allowed) listed += (listed.empty() ? "" : ", ") + std::to_string(value);
      refuse_plan(std::string("tiles has ") + names[at] + " " + std::to_string(values[at]) + ", expected one of " +
                  listed);
    }
    return static_cast<std::int32_t>(values[at]);
  };
  if (values[4] < 1) refuse_plan("tiles has time_blocks " + std::to_string(values[4]) + ", expected 1 or more");
  ProjectTiles tiles = {};
  tiles.wide = one_of(0, {64, 128}) == 128;
  tiles.batch_rows = one_of(1, {1, 2, 4, 8});
  tiles.stages = one_of(2, {1, 2, 3, 4});
  tiles.weights_resident = one_of(3, {0, 1}) == 1;
  tiles.time_blocks = values[4];
  return tiles;
}

// Whether project_scan computes in this precision: float64 and strict float32 have no matrix instructions that would pay.
inline bool has_project_scan(const Workload& work, const DeviceFacts& device) {
  return !device.is_cpu() && (work.precision == Precision::tf32 || work.element_bytes() == 2);
}

// Half the cache for the projection of one chunk: the other half holds the weights, the inputs that stream past and
// what is being written. A GPU's backward takes the sequence whole, unless its chunks save more than they cost. Where a device's
// facts are not known, project_scan is not chosen.
inline Plan make_plan(const Workload& work, const DeviceFacts& device, const Request& asked = {}) {
  check(asked);
  const bool can_project = has_project_scan(work, device);
  if (asked.forward == Method::project_scan && !can_project) {
    refuse_plan("'project_scan' is for float16, bfloat16 and, where TF32 is allowed, float32 on a CUDA device");
  }
  const Method scan = choose_scan(work, device);
  const std::int64_t T = std::max<std::int64_t>(work.T, 1), N = std::max<std::int64_t>(work.N, 1);
  const std::int64_t in_cache = steps_within(device.cache_bytes / 2, work);
  Plan plan = {
      asked.forward.value_or(scan), asked.backward.value_or(scan), in_cache, device.is_cpu() ? in_cache : T, {}, 0, 0};

  const bool facts_known = device.clock_khz > 0 && device.bytes_per_second > 0;
  if (facts_known && plan.backward == Method::sequential && backward_saving(work, device, in_cache) > 0) {
    plan.backward_gemm_chunk = in_cache;
  }
  if (!asked.forward && !asked.recompute && can_project && facts_known) {
    const auto tiles = choose_tiles(work, device);
    const auto projected = [&] { return project_scan_cost(work, device, *tiles).microseconds; };
    const auto chunked = [&] { return chunked_cost(work, device, scan, in_cache).microseconds; };
    if (tiles && projected() <= chunked()) plan.forward = Method::project_scan;
  }
  if (plan.forward == Method::project_scan) plan.gemm_chunk = T;
  if (asked.gemm_chunk) plan.gemm_chunk = std::min(*asked.gemm_chunk, T);
  if (asked.backward_gemm_chunk) plan.backward_gemm_chunk = std::min(*asked.backward_gemm_chunk, T);

  if (device.is_cpu()) {
    const bool worth =
        T >= (least_event_rows + N - 1) / N && work.C >= least_event_features && work.H >= least_event_neurons;
    plan.event_rate = asked.event_rate.value_or(worth ? most_ones_forward : 0);
    plan.backward_event_rate = asked.backward_event_rate.value_or(worth ? most_ones_backward : 0);
  } else if (asked.event_rate.value_or(0) > 0 || asked.backward_event_rate.value_or(0) > 0) {
    refuse_plan("event_rate and backward_event_rate, which 'events' sets, are for a CPU");
  }

  if (plan.forward == Method::project_scan && work.T > 0 && work.N > 0 && work.H > 0) {
    Workload chunk = work;
    chunk.T = plan.gemm_chunk;
    plan.tiles = asked.tiles ? fitted(*asked.tiles, chunk) : choose_tiles(chunk, device);
    if (!plan.tiles) {
      refuse_plan("'project_scan' needs more shared memory than a block of the device has, " +
                  std::to_string(device.shared_bytes_of_block) + " bytes");
    }
    check(*plan.tiles, chunk, device);
  }
  return plan;
}

}  // namespace leakypar
