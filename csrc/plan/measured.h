// Plans that were measured where they run (leakypar.tune), which come before the arithmetic of make_plan. Plain C++.
#pragma once

#include <atomic>
#include <bit>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <tuple>

#include "plan.h"

namespace leakypar {

// How one direction is computed. A chunk is kept as the bytes of [N, H] rows that it holds at most, so that the steps follow
// where T and N are a little different.
struct MeasuredDirection {
  Method method;
  std::int64_t chunk_bytes;
  std::optional<ProjectTiles> tiles;  // of project_scan
};

inline constexpr std::int64_t whole_sequence = std::int64_t{1} << 62;

enum class Direction : std::int32_t { forward, backward };

// What a plan is found by: a device of the same facts, the same neurons and features, and T and N within a factor of two.
using MeasuredKey = std::tuple<Direction, std::int32_t, int, int, std::int64_t, std::int64_t, std::int64_t,
                               std::int64_t, std::int64_t, std::int64_t>;

inline MeasuredKey measured_key(Direction direction, const Workload& work, const DeviceFacts& device) {
  const auto octave = [](std::int64_t size) {
    return static_cast<int>(std::bit_width(static_cast<std::uint64_t>(size)));
  };
  return {direction,
          static_cast<std::int32_t>(work.precision),
          octave(work.T),
          octave(work.N),
          work.C,
          work.H,
          device.cache_bytes,
          device.multiprocessors,
          device.clock_khz,
          device.capability};
}

class MeasuredPlans {
 public:
  void remember(const MeasuredKey& key, const MeasuredDirection& measured) {
    const std::unique_lock lock(mutex_);
    plans_[key] = measured;
    any_.store(true, std::memory_order_release);
  }

  void forget() {
    const std::unique_lock lock(mutex_);
    plans_.clear();
    any_.store(false, std::memory_order_release);
  }

  // Costs one load where nothing was measured.
  std::optional<MeasuredDirection> find(Direction direction, const Workload& work, const DeviceFacts& device) const {
    if (!any_.load(std::memory_order_acquire)) return std::nullopt;
    const std::shared_lock lock(mutex_);
    const auto found = plans_.find(measured_key(direction, work, device));
    return found == plans_.end() ? std::nullopt : std::optional(found->second);
  }

 private:
  mutable std::shared_mutex mutex_;
  std::map<MeasuredKey, MeasuredDirection> plans_;
  std::atomic<bool> any_ = false;
};

inline MeasuredPlans measured_plans;

// The plan of a call: what a user forces, or else what was measured, or else what make_plan chooses.
inline Plan plan_for(const Workload& work, const DeviceFacts& device, const Request& asked) {
  Request request = asked;
  const bool forward_is_free = !asked.forward && !asked.gemm_chunk && !asked.tiles;
  const bool backward_is_free = !asked.backward && !asked.backward_gemm_chunk;
  if (!asked.recompute && forward_is_free) {
    if (const auto found = measured_plans.find(Direction::forward, work, device)) {
      request.forward = found->method;
      request.gemm_chunk = steps_within(found->chunk_bytes, work);
      request.tiles = found->tiles;
    }
  }
  if (!asked.recompute && backward_is_free) {
    if (const auto found = measured_plans.find(Direction::backward, work, device)) {
      request.backward = found->method;
      request.backward_gemm_chunk = steps_within(found->chunk_bytes, work);
    }
  }
  return make_plan(work, device, request);
}

// What is worth measuring for one direction: both scans on a GPU, chunks of a quarter, half and all of the cache and of the
// whole sequence, and project_scan with tiles of either width. Those that come to the same chunk are one.
inline std::vector<MeasuredDirection> candidates(Direction direction, const Workload& work, const DeviceFacts& device) {
  std::vector<MeasuredDirection> found;
  for (const Method method : {Method::sequential, Method::look_back}) {
    if (method == Method::look_back && device.is_cpu()) continue;
    std::int64_t last = 0;
    for (const std::int64_t bytes :
         {device.cache_bytes / 4, device.cache_bytes / 2, device.cache_bytes, whole_sequence}) {
      const std::int64_t steps = steps_within(bytes, work);
      if (steps != last) found.push_back({method, bytes, {}});
      last = steps;
    }
  }
  if (direction == Direction::forward && has_project_scan(work, device)) {
    for (const bool wide : {true, false}) {
      if (const auto tiles = tiles_of_width(wide, work, device)) {
        found.push_back({Method::project_scan, whole_sequence, tiles});
      }
    }
  }
  return found;
}

}  // namespace leakypar
