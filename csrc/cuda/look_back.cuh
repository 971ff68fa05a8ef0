// How the time tiles of a scan pass their carries on: decoupled look-back (Merrill and Garland, "Single-pass
// Parallel Prefix Scan with Decoupled Look-back", NVIDIA NVR-2016-002), with a fixed order of evaluation.
//
// A scan's steps are maps h -> f(h). A block owns a tile of channels and a tile of time; its warps hold consecutive
// runs of steps, each composed to one map a channel. Then, with F_c the composition of time tile c and x_c its carry-in,
//
//   1. the block publishes F_c (its aggregate) as soon as it knows it;
//   2. it waits until some predecessor p among the 32 before it has published x_{p+1} (its inclusive carry) and all
//      between have published their aggregates, then folds x_c = F_{c-1}( ... F_{p+1}(x_{p+1}));
//   3. it publishes x_{c+1} = F_c(x_c), and each warp folds its own carry from x_c and the runs before its own.
//
// Every x_c is the same chain of applications F_{c-1}(F_{c-2}( ... x_0)) whichever predecessor was found, so the bits
// do not depend on timing. A textbook look-back composes aggregates in the order it meets them, and its bits do.
//
// Blocks take (time tile, channel tile) from a ticket counter in the order in which they start, so a block only ever waits for
// blocks that already run: no assumption on residency is needed.
#pragma once

#include <cuda_runtime.h>

#include "../math/clamp_affine.h"
#include "channels.cuh"
#include "launch.cuh"

#ifndef __CUDACC__
#include <atomic>
#endif

namespace leakypar::cuda {

inline constexpr int warp_lanes = 32;
inline constexpr unsigned all_lanes = 0xFFFFFFFFu;

enum Published : unsigned { none = 0, aggregate = 1, inclusive = 2 };

#ifdef __CUDACC__
__device__ __forceinline__ unsigned load_acquire(const unsigned* flag) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ __forceinline__ unsigned load_relaxed(const unsigned* flag) {
  unsigned value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ __forceinline__ void store_release(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
#else
inline unsigned load_acquire(const unsigned* flag) {
  return std::atomic_ref<unsigned>(*const_cast<unsigned*>(flag)).load(std::memory_order_acquire);
}
inline unsigned load_relaxed(const unsigned* flag) {
  return std::atomic_ref<unsigned>(*const_cast<unsigned*>(flag)).load(std::memory_order_relaxed);
}
inline void store_release(unsigned* flag, unsigned value) {
  std::atomic_ref<unsigned>(*flag).store(value, std::memory_order_release);
}
#endif

// How a launch tiles [T, M]: blocks = time tiles * channel tiles. Time tiles count in scan order, so for a scan that runs
// backward in time tile 0 is the last one.
struct Tiling {
  std::int64_t T, M;
  std::int64_t time_tiles, channel_tiles;
  int warps;
  std::int64_t tickets = 1;  // one counter for all blocks, or one for each team of blocks

  Tiling(const TimeTiling& shape, std::int64_t T, std::int64_t M, int width)
      : T(T),
        M(M),
        time_tiles(shape.tiles(T)),
        channel_tiles((M + warp_lanes * width - 1) / (warp_lanes * width)),
        warps(shape.warps(T)) {}

  Tiling(std::int64_t T, std::int64_t M, std::int64_t time_tiles, std::int64_t channel_tiles, int warps,
         std::int64_t tickets)
      : T(T), M(M), time_tiles(time_tiles), channel_tiles(channel_tiles), warps(warps), tickets(tickets) {}
};

// The workspace of one launch; a single time tile needs none. Ticket and flags must be zero when the kernel starts, the rest
// need not be.
template <typename Map>
struct LookBack {
  using Real = decltype(Map::offset);
  static constexpr int fields = sizeof(Map) / sizeof(Real);

  unsigned* ticket;  // [tickets]
  unsigned* flags;   // [time_tiles, channel_tiles]
  Real* aggregates;  // [time_tiles, fields, M]
  Real* inclusives;  // [time_tiles, M]: the carry out of each

  static std::int64_t cleared_bytes(const Tiling& tiling) {
    const std::int64_t bytes =
        (tiling.tickets + tiling.time_tiles * tiling.channel_tiles) * static_cast<std::int64_t>(sizeof(unsigned));
    return (bytes + 15) / 16 * 16;
  }

  static std::int64_t bytes(const Tiling& tiling) {
    if (tiling.time_tiles <= 1) return 0;
    return cleared_bytes(tiling) +
           tiling.time_tiles * (fields + 1) * tiling.M * static_cast<std::int64_t>(sizeof(Real));
  }

  static cudaError_t clear(void* workspace, const Tiling& tiling, cudaStream_t stream) {
    if (tiling.time_tiles <= 1) return cudaSuccess;
    return cudaMemsetAsync(workspace, 0, cleared_bytes(tiling), stream);
  }

  static LookBack at(void* workspace, const Tiling& tiling) {
    if (tiling.time_tiles <= 1) return {};
    auto* words = static_cast<unsigned*>(workspace);
    auto* reals = reinterpret_cast<Real*>(static_cast<unsigned char*>(workspace) + cleared_bytes(tiling));
    return {words, words + tiling.tickets, reals, reals + tiling.time_tiles * fields * tiling.M};
  }
};

// The shared memory of a block: its warps' maps, the carry into the block, and its ticket.
template <typename Map, int Width>
struct BlockMemory {
  using Real = decltype(Map::offset);
  static constexpr int fields = LookBack<Map>::fields;
  static constexpr int columns = warp_lanes * Width;

  Real* runs;        // [fields, warps, columns]
  Real* carry;       // [columns]
  unsigned* ticket;  // [1]

  static std::size_t bytes(int warps) { return sizeof(Real) * columns * (fields * warps + 1) + sizeof(unsigned); }

  __device__ static BlockMemory at(void* memory, int warps) {
    auto* reals = static_cast<Real*>(memory);
    Real* carry = reals + fields * warps * columns;
    return {reals, carry, reinterpret_cast<unsigned*>(carry + columns)};
  }
};

// A thread's place: which time tile and channel tile its block took, and its first column.
struct Place {
  std::int64_t time_tile, channel_tile, column;
  int lane, warp;
};

template <int Width, typename Map>
__device__ __forceinline__ Place take_place(const LookBack<Map>& book, const Tiling& tiling, unsigned* ticket) {
  unsigned block = blockIdx.x;
  if (tiling.time_tiles > 1) {
    if (threadIdx.x == 0) *ticket = atomicAdd(book.ticket, 1u);
    __syncthreads();
    block = *ticket;
  }
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  const auto channel_tiles = static_cast<unsigned>(tiling.channel_tiles);  // a grid has fewer than 2^31 blocks
  const unsigned time_tile = block / channel_tiles;
  const std::int64_t channel_tile = block - time_tile * channel_tiles;
  return {time_tile, channel_tile, (channel_tile * warp_lanes + lane) * Width, lane,
          static_cast<int>(threadIdx.x) / warp_lanes};
}

// Width neighbouring values that other multiprocessors write or read, as one access where that is 16 bytes wide. They pass
// the first-level cache by.
template <int Width, typename Real>
__device__ __forceinline__ void load_published(Real (&values)[Width], const Real* from) {
  if constexpr (sizeof values == 16) {
    const uint4 words = __ldcg(reinterpret_cast<const uint4*>(from));
    memcpy(values, &words, sizeof values);
  } else {
#pragma unroll
    for (int i = 0; i < Width; ++i) values[i] = __ldcg(from + i);
  }
}

template <int Width, typename Real>
__device__ __forceinline__ void store_published(Real* to, const Real (&values)[Width]) {
  if constexpr (sizeof values == 16) {
    uint4 words;
    memcpy(&words, values, sizeof values);
    __stcg(reinterpret_cast<uint4*>(to), words);
  } else {
#pragma unroll
    for (int i = 0; i < Width; ++i) __stcg(to + i, values[i]);
  }
}

// The maps of a time tile, as its block leaves them for the blocks after it.
template <typename Map, int Width>
__device__ __forceinline__ void store_aggregate(const LookBack<Map>& book, const Tiling& tiling, std::int64_t time_tile,
                                                std::int64_t column, const Map (&maps)[Width]) {
  using Real = decltype(Map::offset);
  constexpr int fields = LookBack<Map>::fields;
  Real values[fields][Width];
#pragma unroll
  for (int i = 0; i < Width; ++i) {
    Real map[fields];
    memcpy(map, &maps[i], sizeof map);
#pragma unroll
    for (int f = 0; f < fields; ++f) values[f][i] = map[f];
  }
  Real* to = book.aggregates + time_tile * fields * tiling.M + column;
#pragma unroll
  for (int f = 0; f < fields; ++f) store_published(to + f * tiling.M, values[f]);
}

// Makes a warp's stores visible before its flag is. In the PTX memory model: each lane's stores come before its arrival at
// the warp's barrier, which synchronizes with lane 0's departure; lane 0's release, at the scope of the device, is
// cumulative, so that it covers what came before it in that order, and not lane 0's own stores alone. A fence of each lane
// would say the same once more.
__device__ __forceinline__ void publish(unsigned* flag, Published state, int lane) {
  __syncwarp();
  if (lane == 0) store_release(flag, state);
}

// Step 2 above, by one warp: the carry into a time tile that has predecessors. power: of the decays, to a tile's steps.
//
// The polls are relaxed: an acquire invalidates the first-level cache each time it is asked. What was polled is then read
// once more as an acquire. It sees that state or a later one, since reads of one word are coherent; either is the release of
// a thread whose earlier stores, the ones read below, come before it. The barrier hands what one lane acquired to all.
template <typename Map, int Width, typename Real = decltype(Map::offset)>
__device__ __forceinline__ void look_back(Real (&carry)[Width], const LookBack<Map>& book, const Tiling& tiling,
                                          const Place& place, const Power<Real> (&power)[Width]) {
  constexpr int fields = LookBack<Map>::fields;
  const std::int64_t watched = place.time_tile - 1 - place.lane;  // lane i watches the i-th predecessor
  const unsigned* const flag = book.flags + watched * tiling.channel_tiles + place.channel_tile;
  int nearest;
  for (;;) {
    const unsigned state = watched >= 0 ? load_relaxed(flag) : none;
    const unsigned published = __ballot_sync(all_lanes, state != none);
    const unsigned complete = __ballot_sync(all_lanes, state == inclusive);
    nearest = __ffs(static_cast<int>(complete)) - 1;
    const unsigned nearer = nearest > 0 ? (1u << nearest) - 1u : 0u;
    if (nearest >= 0 && (published & nearer) == nearer) break;
    __nanosleep(32);
  }
  if (place.lane <= nearest) load_acquire(flag);
  __syncwarp();  // what any lane acquired, every lane may now read
  if (place.column >= tiling.M) return;

  load_published(carry, book.inclusives + (place.time_tile - 1 - nearest) * tiling.M + place.column);
  const Real* stored = book.aggregates + (place.time_tile - nearest) * fields * tiling.M + place.column;
  // The loads of several tiles' maps are in flight together: loaded one by one, each would be waited for where a map's
  // application branches. A lone column belongs to a kernel that has no registers for it.
  constexpr int at_once = Width > 1 ? 4 : 1;
#pragma unroll 1
  for (int tile = 0; tile < nearest; tile += at_once) {
    Real values[at_once][fields][Width];
#pragma unroll
    for (int k = 0; k < at_once; ++k, stored += fields * tiling.M) {
      if (tile + k >= nearest) break;
#pragma unroll
      for (int f = 0; f < fields; ++f) load_published(values[k][f], stored + f * tiling.M);
    }
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      if (tile + k >= nearest) break;
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        Real of_column[fields];
#pragma unroll
        for (int f = 0; f < fields; ++f) of_column[f] = values[k][f][i];
        Map map;
        memcpy(&map, of_column, sizeof map);
        carry[i] = map(carry[i], power[i]);
      }
    }
  }
}

// From each warp's run map to each warp's carry-in, by the three steps above. carry holds x_0 on entry where the block
// has time tile 0, and the carry into this thread's run on return. A run has TimeTiling::run steps, but for the sequence's
// last, whose map nobody applies. Every thread of the block must call it.
template <typename Map, int Width, typename Real = decltype(Map::offset)>
__device__ __forceinline__ void carry_into_run(Real (&carry)[Width], const Map (&run)[Width], const LookBack<Map>& book,
                                               const Tiling& tiling, const Place& place,
                                               const BlockMemory<Map, Width>& memory, const Real (&decay)[Width]) {
  constexpr int fields = LookBack<Map>::fields;
  constexpr int columns = BlockMemory<Map, Width>::columns;
  const auto slot = [&](int field, int warp) {
    return memory.runs + (field * tiling.warps + warp) * columns + place.lane * Width;
  };
  const auto run_of = [&](int warp, int i) {
    Real values[fields];
#pragma unroll
    for (int f = 0; f < fields; ++f) values[f] = slot(f, warp)[i];
    Map map;
    memcpy(&map, values, sizeof map);
    return map;
  };

#pragma unroll
  for (int i = 0; i < Width; ++i) {
    Real values[fields];
    memcpy(values, &run[i], sizeof values);
#pragma unroll
    for (int f = 0; f < fields; ++f) slot(f, place.warp)[i] = values[f];
  }
  __syncthreads();  // every run of the block is in shared memory

  Power<Real> power[Width];
#pragma unroll
  for (int i = 0; i < Width; ++i) power[i] = Power<Real>::of(decay[i], TimeTiling::run);
  if (place.warp == 0) {
    const bool has_successor = place.time_tile + 1 < tiling.time_tiles;
    const bool active = place.column < tiling.M;
    unsigned* flag = book.flags + place.time_tile * tiling.channel_tiles + place.channel_tile;
    Map tile_map[Width];
    if (has_successor) {
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        tile_map[i] = run[i];
        for (int warp = 1; warp < tiling.warps; ++warp) {
          tile_map[i] = compose(tile_map[i], warp * TimeTiling::run, run_of(warp, i), power[i], decay[i]);
        }
      }
    }
    Power<Real> tile_power[Width];
#pragma unroll
    for (int i = 0; i < Width; ++i) tile_power[i] = Power<Real>::of(decay[i], tiling.warps * TimeTiling::run);
    if (place.time_tile > 0) {
      if (has_successor) {
        if (active) store_aggregate(book, tiling, place.time_tile, place.column, tile_map);
        publish(flag, aggregate, place.lane);
      }
      look_back(carry, book, tiling, place, tile_power);
    }
    if (has_successor) {
      if (active) {
        Real after[Width];
#pragma unroll
        for (int i = 0; i < Width; ++i) after[i] = tile_map[i](carry[i], tile_power[i]);
        store_published(book.inclusives + place.time_tile * tiling.M + place.column, after);
      }
      publish(flag, inclusive, place.lane);
    }
#pragma unroll
    for (int i = 0; i < Width; ++i) memory.carry[place.lane * Width + i] = carry[i];
  }
  __syncthreads();  // the block's carry is in shared memory

#pragma unroll
  for (int i = 0; i < Width; ++i) {
    carry[i] = memory.carry[place.lane * Width + i];
    for (int warp = 0; warp < place.warp; ++warp) carry[i] = run_of(warp, i)(carry[i], power[i]);
  }
}

}  // namespace leakypar::cuda
