// A thread's own ring of vectors in shared memory, filled by asynchronous copies that run ahead of their use.
//
// Loads into registers cannot run ahead in a loop: the compiler has six scoreboards to wait for loads with, gives a loop's
// loads one, and so waits for the latest of them whenever it waits for the first. Copies are counted in groups instead.
// A slot is read by the thread that filled it alone, so that its wait is enough and no barrier is needed.
#pragma once

#include "async_copy.cuh"
#include "channels.cuh"
#include "launch.cuh"

namespace leakypar::cuda {

// Arrays: vectors of a step. Depth: steps in flight.
template <typename Scalar, int Width, int Arrays, int Depth, int Threads>
class CopyRing {
  using Vector = Packet<Scalar, Width>;
  // The smallest copy has four bytes. A lone 16-bit element comes with its neighbour in front where it is the upper half
  // of a word, and alone where it is the lower one.
  static constexpr bool halves = sizeof(Vector) < 4;
  static constexpr int slot_bytes = halves ? 4 : static_cast<int>(sizeof(Vector));

  unsigned char* first_;  // of this thread's slots: [Depth][Arrays][Threads] in all
  int filling_ = 0, reading_ = 0;

  static constexpr int step_bytes = Arrays * Threads * slot_bytes;

  __device__ static __forceinline__ int next(int at) { return at + step_bytes == bytes ? 0 : at + step_bytes; }

 public:
  static constexpr int bytes = Depth * step_bytes;

  __device__ __forceinline__ CopyRing()
      : first_(static_cast<unsigned char*>(shared_memory()) + threadIdx.x * slot_bytes) {}

  // Starts the copy of one array's vector of the step that is filled.
  __device__ __forceinline__ void fill(int array, const Scalar* from) {
    unsigned char* const to = first_ + filling_ + array * Threads * slot_bytes;
    if constexpr (halves) {
      const auto address = reinterpret_cast<std::uintptr_t>(from);
      const auto* word = reinterpret_cast<const unsigned char*>(address & ~std::uintptr_t{3});
      copy_async<4>(to, word, (address & 2) != 0 ? 4 : 2);
    } else {
      copy_async<slot_bytes>(to, from, slot_bytes);
    }
  }

  // Ends the step that is filled: the next one is the one after it. Every step must be ended, also one of no copies.
  __device__ __forceinline__ void filled() {
    commit_copies();
    filling_ = next(filling_);
  }

  // Waits for the step that is read, with Depth steps filled and not read.
  __device__ __forceinline__ void wait() const { wait_copies<Depth - 1>(); }

  // A vector of that step; `from` as it was filled.
  __device__ __forceinline__ Vector read(int array, const Scalar* from) const {
    const unsigned char* const slot = first_ + reading_ + array * Threads * slot_bytes;
    if constexpr (halves) {
      return *reinterpret_cast<const Vector*>(slot + (reinterpret_cast<std::uintptr_t>(from) & 2));
    } else {
      return *reinterpret_cast<const Vector*>(slot);
    }
  }

  // Ends the step that is read: its slot may be filled.
  __device__ __forceinline__ void done() { reading_ = next(reading_); }
};

}  // namespace leakypar::cuda
