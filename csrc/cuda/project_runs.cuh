// The scan of a tile of project_scan.cuh, from the accumulators of its product to its stores: steps 2, 4 and 5 there.
#pragma once

#include "../kernels.h"
#include "../math/clamp_affine.h"
#include "dropout.cuh"
#include "project_tile.cuh"

namespace leakypar::cuda {
namespace {

using Map = ClampAffine<float>;

// Step 2: a lane's runs, each as one map.
template <int Pairs, typename Clip>
__device__ __forceinline__ void compose_runs(Accumulators<Pairs>& u, const Shared& shared, const Thread& thread,
                                             const Clip& clip) {
  const auto row_of = [&](int which) { return thread.warp_row * warp_neurons + which * 8 + thread.group; };
  bool any_grows = false;
#pragma unroll
  for (int which = 0; which < lane_neurons; ++which) {
    const float decay = shared.decay[row_of(which)];
    any_grows |= grows(decay);
    Map map = Map::first(decay, at<Pairs>(u, which, 0), clip);
#pragma unroll
    for (int step = 1; step < 2 * Pairs; ++step) map.then(decay, at<Pairs>(u, which, step), clip);
    shared.map(0, thread.run, row_of(which)) = map.offset;
    shared.map(1, thread.run, row_of(which)) = map.below;
    shared.map(2, thread.run, row_of(which)) = map.above;
  }
  if (!any_grows) [[likely]]
    return;
#pragma unroll
  for (int which = 0; which < lane_neurons; ++which) {
    const float decay = shared.decay[row_of(which)];
    if (!grows(decay)) continue;
    const float reciprocal = 1.0f / decay;
    Map map = {};
#pragma unroll
    for (int step = 2 * Pairs - 1; step >= 0; --step) map.from_last(reciprocal, at<Pairs>(u, which, step));
    shared.map(0, thread.run, row_of(which)) = map.offset;
  }
}

// Step 4: from the carry into the tile to the carry into each run. A thread has one row of the product, a neuron, and
// walks the runs of each batch row.
template <int Pairs, typename Scalar>
__device__ __forceinline__ void carry_into_runs(const ProjectScan<Scalar>& args, const ProjectTiles& tiles,
                                                const Shared& shared, const Thread& thread, std::int64_t tile,
                                                const Tiling& tiling, const LookBack<Map>& book) {
  const int row = static_cast<int>(threadIdx.x);
  const float decay = shared.decay[row];
  const auto power = Power<float>::of(decay, 2 * Pairs);
  const std::int64_t neuron = thread.first_neuron + neuron_of_row<Scalar>(row);
  const auto map_of = [&](int run) {
    return Map{shared.map(0, run, row), shared.map(1, run, row), shared.map(2, run, row)};
  };
  const auto initial = [&](int i) {
    const std::int64_t n = thread.first_row + i;
    const bool given = args.initial_membrane != nullptr && neuron < args.H && n < args.N;
    return given ? args.initial_membrane[n * args.H + neuron] : 0.0f;
  };

  if (tiling.time_tiles > 1) {
    const auto tile_map = [&](int i) {
      Map map = map_of(i * thread.time_runs);
      for (int run = 1; run < thread.time_runs; ++run) {
        map = compose(map, run * 2 * Pairs, map_of(i * thread.time_runs + run), power, decay);
      }
      return map;
    };
    const Power<float> tile_power[1] = {Power<float>::of(decay, thread.time_runs * 2 * Pairs)};
    const int warp = row / warp_lanes;
    Place place = {tile, thread.team * (ProjectTiles::threads / warp_lanes) + warp, 0, thread.lane, warp};
    const auto column = [&](int i) { return (thread.team * tiles.batch_rows + i) * ProjectTiles::neurons + row; };
    unsigned* const flag = book.flags + tile * tiling.channel_tiles + place.channel_tile;
    const bool has_successor = tile + 1 < tiling.time_tiles;
    if (tile > 0 && has_successor) {
      for (int i = 0; i < tiles.batch_rows; ++i) {
        const Map map[1] = {tile_map(i)};
        store_aggregate(book, tiling, tile, column(i), map);
      }
      publish(flag, aggregate, thread.lane);
    }
    for (int i = 0; i < tiles.batch_rows; ++i) {
      float carry[1] = {0.0f};
      if (tile == 0) {
        carry[0] = initial(i);
      } else {
        place.column = column(i);
        look_back(carry, book, tiling, place, tile_power);
      }
      if (has_successor) __stcg(book.inclusives + tile * tiling.M + column(i), tile_map(i)(carry[0], tile_power[0]));
      shared.carries[i * ProjectTiles::neurons + row] = carry[0];
    }
    if (has_successor) publish(flag, inclusive, thread.lane);
  } else if (tile == 0) {
    for (int i = 0; i < tiles.batch_rows; ++i) shared.carries[i * ProjectTiles::neurons + row] = initial(i);
  }

  for (int i = 0; i < tiles.batch_rows; ++i) {
    float& carry = shared.carries[i * ProjectTiles::neurons + row];
    float h = carry;
    for (int run = i * thread.time_runs; run < (i + 1) * thread.time_runs; ++run) {
      const Map map = map_of(run);
      shared.map(0, run, row) = h;
      h = map(h, power);
    }
    carry = h;
  }
}

// A lane's eight neurons at one (time, batch row). Packets: in 16-byte stores; otherwise one by one, since rows do not begin
// on such a boundary. to: the array, or nothing; offset: of the row's element of the tile's first neuron; neurons: how many
// the tile has. Everything but the store is computed whether it is stored or not: a predicate costs less than a branch.
template <bool Packets, typename Scalar>
__device__ __forceinline__ void store_neurons(Scalar* to, std::int64_t offset, const float (&values)[lane_neurons],
                                              const Thread& thread, int neurons) {
  constexpr int packet = piece_bytes / static_cast<int>(sizeof(Scalar));
#pragma unroll
  for (int which = 0; which < lane_neurons; which += packet) {
    const int neuron = thread.warp_row * warp_neurons + neuron_of<Scalar>(thread.group, which);
    if constexpr (Packets) {
      Packet<Scalar, packet> part;
#pragma unroll
      for (int i = 0; i < packet; ++i) part.element[i] = narrow<Scalar>(values[which + i]);
      store_packet_if(to != nullptr && neuron < neurons, to, offset + neuron, part);
    } else {
#pragma unroll
      for (int i = 0; i < packet; ++i) {
        if (to != nullptr && neuron + i < neurons) to[offset + neuron + i] = narrow<Scalar>(values[which + i]);
      }
    }
  }
}

// What the threshold sees of a lane's eight neurons under dropout: four neighbours at a time.
template <bool Packets, typename Scalar>
__device__ __forceinline__ void drop_out(float (&seen)[lane_neurons], const ProjectScan<Scalar>& args,
                                         std::int64_t offset, const Thread& thread) {
#pragma unroll
  for (int which = 0; which < lane_neurons; which += 4) {
    const std::int64_t element = offset + thread.warp_row * warp_neurons + neuron_of<Scalar>(thread.group, which);
    float factors[4];
    dropout_factors<Packets>(factors, args.dropout, element);
#pragma unroll
    for (int i = 0; i < 4; ++i) seen[which + i] *= factors[i];
  }
}

// Step 5. Plain: there is neither dropout nor a length; the code of a generator costs registers where it is not run, too.
template <bool Plain, bool Packets, typename Scalar, int Pairs>
__device__ __forceinline__ void replay_run(Accumulators<Pairs>& u, const ProjectScan<Scalar>& args,
                                           const Shared& shared, const Thread& thread, std::int64_t tile,
                                           const ClipOf<float, Plain>& clip) {
  constexpr int run_steps = 2 * Pairs;
  const std::int64_t n = thread.row_of(thread.run);
  const std::int64_t t0 = (tile << thread.steps_shift<Pairs>()) + thread.place_in_time(thread.run) * run_steps;
  if (n >= args.N) return;
  std::int64_t own = args.T;
  if constexpr (!Plain) own = args.lengths.steps(n, args.T);
  if (t0 >= own) return;
  const int steps = static_cast<int>(own - t0 < run_steps ? own - t0 : run_steps);
  const std::int64_t left = args.H - thread.first_neuron;
  const int neurons = static_cast<int>(left < ProjectTiles::neurons ? left : ProjectTiles::neurons);

  float h[lane_neurons], decay[lane_neurons], threshold[lane_neurons], gain[lane_neurons];
#pragma unroll
  for (int which = 0; which < lane_neurons; ++which) {
    const int row = thread.warp_row * warp_neurons + which * 8 + thread.group;
    h[which] = shared.map(0, thread.run, row);
    decay[which] = shared.decay[row];
    if constexpr (Plain) {
      threshold[which] = shared.threshold[row];
      gain[which] = shared.gain[row];
    }
  }
  std::int64_t offset = (t0 * args.N + n) * args.H + thread.first_neuron;
#pragma unroll
  for (int step = 0; step < run_steps; ++step) {
    if (step < steps) {
#pragma unroll
      for (int which = 0; which < lane_neurons; ++which) {
        h[which] = membrane_step(decay[which], h[which], at<Pairs>(u, which, step), clip);
      }
      store_neurons<Packets>(args.outputs.membrane, offset, h, thread, neurons);
      float seen[lane_neurons], spikes[lane_neurons];
#pragma unroll
      for (int which = 0; which < lane_neurons; ++which) seen[which] = h[which];
      if constexpr (!Plain) {
        if (args.dropout.seed != nullptr) drop_out<Packets>(seen, args, offset, thread);
      }
#pragma unroll
      for (int which = 0; which < lane_neurons; ++which) {
        if constexpr (!Plain) {  // beside a generator there are no registers left for these
          const int row = thread.warp_row * warp_neurons + which * 8 + thread.group;
          threshold[which] = shared.threshold[row];
          gain[which] = shared.gain[row];
        }
        spikes[which] = spike(seen[which] - threshold[which]) ? gain[which] : 0.0f;
      }
      store_neurons<Packets>(args.outputs.spikes, offset, spikes, thread, neurons);
      offset += args.N * args.H;
    }
  }
  if (args.outputs.final_membrane != nullptr && t0 + steps == own) {
    float* const last = args.outputs.final_membrane + n * args.H + thread.first_neuron;
#pragma unroll
    for (int which = 0; which < lane_neurons; ++which) {
      const int neuron = thread.warp_row * warp_neurons + neuron_of<Scalar>(thread.group, which);
      if (neuron < neurons) last[neuron] = h[which];
    }
  }
}

}  // namespace
}  // namespace leakypar::cuda
