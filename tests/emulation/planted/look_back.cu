// Blocks that wait for each other: a prefix sum over blocks that are chained by flags, in one launch.
#include "harness.h"

namespace {

// out[rank] = sum of rank' + 1 over rank' <= rank. A block's rank is a ticket, so the blocks before it already run. The
// planted fault takes blockIdx.x instead, and may wait for a block that has no room to start.
template <bool Ticket>
__global__ void chain(unsigned* ticket, volatile unsigned* flags, volatile unsigned* out) {
  auto* rank = static_cast<unsigned*>(leakypar::cuda::shared_memory());  // [1]
  if (threadIdx.x == 0) *rank = Ticket ? atomicAdd(ticket, 1u) : blockIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned before = 0;
    if (*rank > 0) {
      while (flags[*rank - 1] == 0) __nanosleep(32);
      before = out[*rank - 1];
    }
    out[*rank] = before + *rank + 1;
    __threadfence();
    flags[*rank] = 1;
  }
  __syncthreads();
}

// Polls with atomics, and no __nanosleep: the other threads still get their turn.
__global__ void hand_over(unsigned* turn, int threads) {
  const unsigned mine = blockIdx.x * static_cast<unsigned>(threads) + threadIdx.x;
  while (atomicAdd(turn, 0u) != gridDim.x * threads - 1 - mine) {
  }
  atomicAdd(turn, 1u);
}

// One block hands a value to another. The planted faults: the flag is raised before the value is there, and the value is read
// before the flag was seen.
template <bool ValueFirst, bool WaitFirst>
__global__ void publish(volatile unsigned* flag, volatile unsigned* value, unsigned* out) {
  if (blockIdx.x == 0) {
    if (ValueFirst) *value = 7;
    __threadfence();
    if (ValueFirst) *flag = 1;
    if (!ValueFirst) *flag = 1;
    __threadfence();
    if (!ValueFirst) *value = 7;
  } else {
    const unsigned early = *value;
    while (*flag == 0) __nanosleep(32);
    *out = WaitFirst ? *value : early;
  }
}

// A warp of block 0 hands 32 values to block 1: each lane stores and fences its own, lane 0 raises the flag for all. Where
// the lanes do not meet before that, some have yet to store.
template <bool Meet>
__global__ void publish_by_warp(volatile unsigned* flag, volatile unsigned* values, unsigned* out) {
  if (blockIdx.x == 0) {
    values[threadIdx.x] = 1;
    __threadfence();
    if constexpr (Meet) __syncwarp();
    if (threadIdx.x == 0) *flag = 1;
  } else {
    while (*flag == 0) __nanosleep(32);
    out[threadIdx.x] = values[threadIdx.x];
  }
}

template <bool Ticket>
void run_chain() {
  constexpr int blocks = 300;
  planted::Array<unsigned> ticket(1), flags(blocks), out(blocks);
  planted::launch(chain<Ticket>, blocks, 64, sizeof(unsigned), ticket.data(), flags.data(), out.data());
  for (unsigned i = 0; i < blocks; ++i) planted::expect(out[i] == (i + 1) * (i + 2) / 2, "the prefix sum", i);
  out.print();
}

void run_hand_over() {
  constexpr int threads = 48;
  planted::Array<unsigned> turn(1);
  planted::launch(hand_over, 2, threads, 0, turn.data(), threads);
  turn.print();
}

template <bool ValueFirst, bool WaitFirst>
void run_publish() {
  planted::Array<unsigned> flag(1), value(1), out(1);
  planted::launch(publish<ValueFirst, WaitFirst>, 2, 1, 0, flag.data(), value.data(), out.data());
  out.print();
}

template <bool Meet>
void run_publish_by_warp() {
  planted::Array<unsigned> flag(1), values(32), out(32);
  planted::launch(publish_by_warp<Meet>, 2, 32, 0, flag.data(), values.data(), out.data());
  out.print();
}

const planted::Register registered[] = {
    {"look-back", run_chain<true>},
    {"look-back-without-ticket", run_chain<false>},
    {"hand-over", run_hand_over},
    {"publish", run_publish<true, true>},
    {"publish-flag-first", run_publish<false, true>},
    {"publish-read-first", run_publish<true, false>},
    {"publish-by-warp", run_publish_by_warp<true>},
    {"publish-by-warp-without-meeting", run_publish_by_warp<false>},
};

}  // namespace
