// Asynchronous copies that are waited for and met at a barrier, and the same with one of the two missing.
#include "cuda/async_copy.cuh"
#include "harness.h"

namespace {

using leakypar::cuda::shared_memory;

constexpr int kThreads = 64;

// out[i] = in[the next thread's], through shared memory.
template <int Bytes, bool Wait, bool Barrier>
__global__ void copy(unsigned char* out, const unsigned char* in) {
  auto* slots = static_cast<unsigned char*>(shared_memory());  // [kThreads][Bytes]
  const int i = static_cast<int>(threadIdx.x);
  leakypar::cuda::copy_async<Bytes>(slots + i * Bytes, in + i * Bytes, Bytes);
  leakypar::cuda::commit_copies();
  if constexpr (Wait) leakypar::cuda::wait_copies<0>();
  if constexpr (Barrier) __syncthreads();
  for (int byte = 0; byte < Bytes; ++byte) out[i * Bytes + byte] = slots[(i + 1) % kThreads * Bytes + byte];
}

template <int Bytes, bool Wait, bool Barrier>
void run_copy() {
  planted::Array<unsigned char> out(kThreads * Bytes), in(kThreads * Bytes);
  for (int i = 0; i < kThreads * Bytes; ++i) in[i] = static_cast<unsigned char>(i % 251);
  planted::launch(copy<Bytes, Wait, Barrier>, 1, kThreads, kThreads * Bytes, out.data(), in.data());
  out.print();
  if (!Wait || !Barrier) return;
  for (int i = 0; i < kThreads * Bytes; ++i) {
    planted::expect(out[i] == in[(i + Bytes) % (kThreads * Bytes)], "the next thread's byte", i);
  }
}

// Two groups: waiting for all but one leaves the later one in flight. Short sources are filled up with zeros; with nothing
// valid the source is not read.
__global__ void groups(unsigned char* out, const unsigned char* in, const unsigned char* nowhere) {
  auto* slots = static_cast<unsigned char*>(shared_memory());  // [3][16]
  leakypar::cuda::copy_async<16>(slots, in, 5);
  leakypar::cuda::copy_async<16>(slots + 16, nowhere, 0);
  leakypar::cuda::commit_copies();
  leakypar::cuda::copy_async<16>(slots + 32, in, 16);
  leakypar::cuda::commit_copies();
  leakypar::cuda::wait_copies<1>();
  for (int i = 0; i < 48; ++i) out[i] = slots[i];
  leakypar::cuda::wait_copies<0>();
  for (int i = 0; i < 48; ++i) out[48 + i] = slots[i];
}

void run_groups() {
  planted::Array<unsigned char> out(96), in(16);
  for (int i = 0; i < 16; ++i) in[i] = static_cast<unsigned char>(1 + i);
  planted::launch(groups, 1, 1, 48, out.data(), in.data(), nullptr);
  out.print();
  for (int i = 0; i < 96; ++i) {
    const int place = i % 48;
    const int whole = place < 5 || place >= 32 ? 1 + place % 16 : 0;
    planted::expect(out[i] == (i < 48 && place >= 32 ? 0xFF : whole), "what has landed", i);
  }
}

// A slot that is used again while another thread still reads it: the copy may land at any time from its issue on.
template <bool Barrier>
__global__ void reuse(unsigned* out, const unsigned* in, int rounds) {
  auto* slots = static_cast<unsigned*>(shared_memory());  // [kThreads]
  const int i = static_cast<int>(threadIdx.x);
  for (int round = 0; round < rounds; ++round) {
    leakypar::cuda::copy_async<4>(slots + i, in + round * kThreads + i, 4);
    leakypar::cuda::commit_copies();
    leakypar::cuda::wait_copies<0>();
    __syncthreads();
    out[round * kThreads + i] = slots[(i + 1) % kThreads];
    if constexpr (Barrier) __syncthreads();
  }
}

template <bool Barrier>
void run_reuse() {
  constexpr int rounds = 4;
  planted::Array<unsigned> out(rounds * kThreads), in(rounds * kThreads);
  for (int i = 0; i < rounds * kThreads; ++i) in[i] = static_cast<unsigned>(i);
  planted::launch(reuse<Barrier>, 1, kThreads, kThreads * sizeof(unsigned), out.data(), in.data(), rounds);
  out.print();
}

__global__ void misaligned_copy(const unsigned char* in) {
  leakypar::cuda::copy_async<16>(shared_memory(), in + 8, 16);
}

__global__ void copy_outside(const unsigned char* in) {
  leakypar::cuda::copy_async<16>(static_cast<unsigned char*>(shared_memory()) + 64, in, 16);
}

template <auto Kernel>
void run_fault() {
  planted::Array<unsigned char> in(32);
  planted::launch(Kernel, 1, 1, 64, in.data());
}

const planted::Register registered[] = {
    {"copy", run_copy<16, true, true>},
    {"copy-8", run_copy<8, true, true>},
    {"copy-4", run_copy<4, true, true>},
    {"copy-without-wait", run_copy<16, false, true>},
    {"copy-without-barrier", run_copy<16, true, false>},
    {"copy-groups", run_groups},
    {"copy-slot-reuse", run_reuse<true>},
    {"copy-slot-reuse-without-barrier", run_reuse<false>},
    {"copy-misaligned", run_fault<misaligned_copy>},
    {"copy-outside-shared", run_fault<copy_outside>},
};

}  // namespace
