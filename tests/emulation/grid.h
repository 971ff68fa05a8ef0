// A launch: the blocks of a grid, their warps and lanes, and the points where a thread stops for others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

#include "vectors.h"

namespace leakypar_emulation {

// One kernel with its arguments, ready to be called by every thread.
struct Kernel {
  void (*call)(void* arguments);
  void* arguments;
};

// Runs every thread of the grid to its end. One launch at a time; others wait.
void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, Kernel kernel);

// Whether the caller is a thread of a running kernel.
bool inside_kernel();

enum class WarpOperation { sync, ballot, any, all, collective, shuffle, shuffle_up, shuffle_down, shuffle_xor };

// An operation that computes from the registers of all 32 lanes at once: a matrix instruction.
struct Collective {
  const char* name;
  void (*run)(void* const* registers);  // [32]: what each lane brought, and where it gets its results
};

// What one lane brings to a warp operation.
struct WarpRequest {
  WarpOperation operation;
  unsigned mask;
  std::uint64_t value;  // a predicate, or the bits to shuffle
  unsigned bytes;       // of the value shuffled
  unsigned operand;     // a shuffle's source lane or distance
  unsigned width;       // lanes in a shuffle's segment
  std::source_location where;
  const Collective* collective = nullptr;
  void* registers = nullptr;  // this lane's
};

// The rest is called by a kernel's threads.

// Waits until every live lane of the mask has brought the same operation with the same mask, and returns this lane's
// result. Lanes with different masks do not meet.
std::uint64_t warp_operation(const WarpRequest& request);

// Waits until all 32 lanes of the warp have come, and runs the operation on their registers. A warp that lacks a lane,
// because its block is short or the lane has returned, is reported.
void warp_collective(const Collective& collective, void* registers, std::source_location where);

// Waits until every live thread of the block has come.
void block_barrier(std::source_location where);

// Lets every other thread that can run go first.
void yield();

// A place where the device might change threads: yields now and then, as the order has it.
void preemption_point();

// The block's dynamic shared memory: as many bytes as the launch asked for, aligned to 16.
void* shared_memory();

// Fails unless `bytes` at `address` lie in the block's shared memory, on a boundary of that many bytes.
void require_shared(const void* address, std::size_t bytes, const char* what);

}  // namespace leakypar_emulation
