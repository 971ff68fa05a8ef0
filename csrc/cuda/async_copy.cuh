// Copies from device memory to shared memory that overlap with computing (cp.async). A copy is there for the thread that
// issued it after that thread's wait, and for the other threads of the block after a barrier behind the wait.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace leakypar::cuda {

#ifdef __CUDACC__
// Copies `valid` bytes, at most Bytes, and zeros after them. With none valid, `from` is not read. Both addresses lie on
// a boundary of Bytes. Sixteen bytes bypass the first-level cache: another block's reads are what would hit there.
template <int Bytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, int valid) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(valid) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(Bytes), "r"(valid)
                 : "memory");
  }
}

// The same of 16 bytes or of none, when `from` may be any address at all: one instruction, where a count of valid bytes that
// the compiler does not know takes seven more.
__device__ __forceinline__ void copy_async_or_zero(void* to, const void* from, bool there) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile(
      "{ .reg .pred ignore; setp.eq.u32 ignore, %2, 0; cp.async.cg.shared.global [%0], [%1], 16, ignore; }" ::"r"(
          address),
      "l"(from), "r"(static_cast<unsigned>(there))
      : "memory");
}

// Makes a group of the copies issued since the last group.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// The same where `there` says so, without a branch.
__device__ __forceinline__ void commit_copies_if(bool there) {
  asm volatile("{ .reg .pred there; setp.ne.u32 there, %0, 0; @there cp.async.commit_group; }" ::"r"(
                   static_cast<unsigned>(there))
               : "memory");
}

template <int Pending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}
#else
template <int Bytes>
void copy_async(void* to, const void* from, int valid) {
  leakypar_emulation::copy_async(to, from, Bytes, static_cast<std::size_t>(valid));
}
inline void copy_async_or_zero(void* to, const void* from, bool there) {
  leakypar_emulation::copy_async(to, there ? from : to, 16, there ? 16 : 0);
}
inline void commit_copies() { leakypar_emulation::commit_copies(); }
inline void commit_copies_if(bool there) {
  if (there) leakypar_emulation::commit_copies();
}
template <int Pending>
void wait_copies() {
  leakypar_emulation::wait_copies(Pending);
}
#endif

}  // namespace leakypar::cuda
