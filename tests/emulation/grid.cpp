#include "grid.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <span>

#include "diagnosis.h"
#include "settings.h"
#include "state.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace leakypar_emulation {

Current current;

namespace {

// A stack takes two of the memory mappings that the system allows a process, 65530 as a rule.
constexpr int kMaxResidentThreads = 8192;

// Which block starts next. A random order permutes neighbours only: a device, too, starts blocks about in order.
class BlockSequence {
 public:
  BlockSequence(std::int64_t count, Order& order) : order_(order), left_(count), count_(count) {}

  bool empty() const { return left_ == 0 && at_ == neighbours_.size(); }

  std::int64_t next() {
    if (at_ == neighbours_.size()) {
      at_ = 0;
      neighbours_.resize(static_cast<std::size_t>(std::min<std::int64_t>(left_, 64)));
      const auto taken = static_cast<std::int64_t>(neighbours_.size());
      std::iota(neighbours_.begin(), neighbours_.end(), order_.reversed() ? left_ - taken : count_ - left_);
      order_.arrange(std::span(neighbours_));
      left_ -= taken;
    }
    return neighbours_[at_++];
  }

 private:
  Order& order_;
  std::int64_t left_, count_;
  std::vector<std::int64_t> neighbours_;
  std::size_t at_ = 0;
};

void release_barrier_if_complete(Launch& launch, Block& block) {
  if (block.live == 0 || block.at_barrier < block.live) return;
  for (Warp& warp : block.warps) {
    warp.ready |= warp.at_barrier;
    warp.at_barrier = 0;
  }
  block.at_barrier = 0;
  launch.yields = 0;
}

void start(Launch& launch, Block& block, std::int64_t rank) {
  const auto x = static_cast<std::int64_t>(launch.grid.x), y = static_cast<std::int64_t>(launch.grid.y);
  block.index = {static_cast<unsigned>(rank % x), static_cast<unsigned>(rank / x % y),
                 static_cast<unsigned>(rank / x / y)};
  block.live = block.threads;
  std::memset(block.shared_memory, 0xFF, launch.shared_bytes);
  for (Lane& lane : block.lanes) {
    lane.copies.forget();
    lane.fiber.start(launch.kernel.call, launch.kernel.arguments);
  }
  for (Warp& warp : block.warps) warp.live = warp.ready = warp.exist;
}

// Runs each lane that can run, once, or as many of them as the order lets it: others may see what those did while the
// rest have not begun.
void sweep(Launch& launch, Block& block, Warp& warp) {
  std::array<int, kWarpLanes> numbers;
  int count = 0;
  for_each_lane(warp.ready, [&](int lane) { numbers[count++] = lane; });
  const std::span lanes(numbers.data(), count);
  launch.order.arrange(lanes);
  for (const int number : lanes) {
    if (!launch.order.persists()) return;
    Lane& lane = warp.lanes[number];
    warp.ready &= ~(1u << number);
    threadIdx = lane.thread;
    blockIdx = block.index;
    current = {&launch, &block, &warp, &lane, launch.order.patience()};
    lane.fiber.resume();
    current = {};
    if (!lane.fiber.finished()) continue;
    warp.live &= ~(1u << number);
    --block.live;
    launch.yields = 0;
    complete_operations(warp);
    release_barrier_if_complete(launch, block);
  }
}

// Runs a block's warps, each as far as it gets or as far as the order lets it.
void take_turn(Launch& launch, Block& block) {
  std::vector<Warp*>& warps = block.turn;
  std::iota(warps.begin(), warps.end(), block.warps.data());
  launch.order.arrange(std::span(warps));
  for (Warp* warp : warps) {
    warp->ready |= std::exchange(warp->yielded, 0u);
    while (warp->ready != 0 && launch.order.persists()) sweep(launch, block, *warp);
  }
  const auto can_run = [](const Warp& warp) { return (warp.ready | warp.yielded) != 0; };
  if (block.live > 0 && std::none_of(block.warps.begin(), block.warps.end(), can_run))
    fail_waiting("a wait that cannot end", launch);
}

}  // namespace

Block::Block(dim3 size, std::size_t shared_bytes)
    : threads(static_cast<int>(size.x * size.y * size.z)), lanes(static_cast<std::size_t>(threads)) {
  for (int i = 0; i < threads; ++i) {
    const auto rank = static_cast<unsigned>(i);
    lanes[i].thread = {rank % size.x, rank / size.x % size.y, rank / size.x / size.y};
  }
  for (int first = 0; first < threads; first += kWarpLanes) {
    const int missing = std::max(0, first + kWarpLanes - threads);
    warps.push_back({&lanes[first], 0xFFFFFFFFu >> missing, 0, 0, 0, 0, 0});
  }
  turn.resize(warps.size());
  if (posix_memalign(&shared_memory, 16, shared_bytes) != 0) fail("no memory for a block's shared memory");
}

Block::~Block() { std::free(shared_memory); }

void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, Kernel kernel) {
  Launch launch{grid, block, shared_bytes, kernel, settings().order, {}};
  gridDim = grid;
  blockDim = block;
  const std::int64_t blocks = static_cast<std::int64_t>(grid.x) * grid.y * grid.z;
  const int threads = static_cast<int>(block.x * block.y * block.z);
  const auto resident = std::min<std::int64_t>({blocks, settings().resident_blocks, kMaxResidentThreads / threads});
  for (int i = 0; i < resident; ++i) launch.residents.emplace_back(block, shared_bytes);

  BlockSequence sequence(blocks, launch.order);
  std::vector<Block*> running;
  for (;;) {
    running.clear();
    for (Block& resident : launch.residents) {
      if (resident.live == 0 && !sequence.empty()) start(launch, resident, sequence.next());
      if (resident.live > 0) running.push_back(&resident);
    }
    if (running.empty()) return;
    launch.order.arrange(std::span(running));
    for (Block* next : running) {
      if (next->absence > 0) {
        --next->absence;
        continue;
      }
      take_turn(launch, *next);
      next->absence = launch.order.absence();
    }
  }
}

bool inside_kernel() { return current.lane != nullptr; }

void block_barrier(std::source_location where) {
  require_kernel("__syncthreads");
  Block& block = *current.block;
  if (block.at_barrier == 0) block.barrier = where;
  if (!same_place(where, block.barrier)) fail_barrier(where);
  current.warp->at_barrier |= current.bit();
  ++block.at_barrier;
  release_barrier_if_complete(*current.launch, block);
  Fiber::suspend();
}

void yield() {
  require_kernel("__nanosleep");
  current.warp->yielded |= current.bit();
  if (++current.launch->yields > settings().spin_limit) fail_waiting("a spin that does not end", *current.launch);
  Fiber::suspend();
}

void preemption_point() {
  require_kernel("an atomic function or a fence");
  if (--current.patience < 0) yield();
}

void* shared_memory() {
  require_kernel("shared_memory()");
  return current.block->shared_memory;
}

void require_shared(const void* address, std::size_t bytes, const char* what) {
  require_kernel(what);
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  const auto first = reinterpret_cast<std::uintptr_t>(current.block->shared_memory);
  if (at < first || at + bytes > first + current.launch->shared_bytes) fail("%s is outside shared memory", what);
  if (at % bytes != 0) fail("%s is not on a boundary of %zu bytes", what, bytes);
}

}  // namespace leakypar_emulation
