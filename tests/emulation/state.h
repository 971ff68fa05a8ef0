// The state of a running grid, shared by the scheduler, the warp operations and the reports.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <source_location>
#include <vector>

#include "async_copy.h"
#include "fiber.h"
#include "grid.h"
#include "order.h"
#include "vectors.h"

namespace leakypar_emulation {

inline constexpr int kWarpLanes = 32;

struct Lane {
  Fiber fiber;
  uint3 thread;
  WarpRequest request;   // while it waits at a warp operation,
  std::uint64_t result;  // and what it then gets
  AsyncCopies copies;
};

// Sets of lanes, one bit each. A live lane, unless it runs, is in exactly one of the last four.
struct Warp {
  Lane* lanes;
  unsigned exist;  // a block's last warp may be short
  unsigned live;   // have not returned
  unsigned ready;
  unsigned yielded;
  unsigned at_barrier;
  unsigned at_operation;
};

struct Block {
  Block(dim3 size, std::size_t shared_bytes);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  uint3 index;
  int threads;
  std::vector<Lane> lanes;  // [threads]
  std::vector<Warp> warps;
  std::vector<Warp*> turn;       // the warps in the order of this turn
  int absence = 0;               // turns to sit out
  int live = 0;                  // threads that have not returned
  int at_barrier = 0;            // of those, how many wait at __syncthreads,
  std::source_location barrier;  // which is here
  void* shared_memory = nullptr;
};

struct Launch {
  dim3 grid, block;
  std::size_t shared_bytes;
  Kernel kernel;
  Order& order;
  std::deque<Block> residents;
  long yields = 0;  // since a thread last returned or a block last passed a barrier
};

// The thread that runs, and everything around it; null between threads.
struct Current {
  Launch* launch;
  Block* block;
  Warp* warp;
  Lane* lane;
  int patience;  // atomics and fences left before the thread steps aside

  unsigned bit() const { return 1u << (lane - warp->lanes); }
};

extern Current current;

// Calls body(lane number) for each lane of a set, in ascending order.
template <typename Body>
void for_each_lane(unsigned lanes, Body body) {
  for (; lanes != 0; lanes &= lanes - 1) body(__builtin_ctz(lanes));
}

// Ends every operation of a warp whose live lanes have all come: called when a lane returns instead of coming.
void complete_operations(Warp& warp);

}  // namespace leakypar_emulation
