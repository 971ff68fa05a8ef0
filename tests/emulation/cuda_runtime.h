// CUDA for the host compiler: kernels compile as C++ and run with one fiber per CUDA thread.
//
// A .cu file under csrc/cuda, unchanged, includes this header as <cuda_runtime.h> and becomes ordinary C++. Every test
// of a kernel then runs on a machine with no GPU and no CUDA toolkit, under AddressSanitizer and UBSan, and with the
// order of threads under control: results that depend on that order are a missing barrier.
//
// What is emulated
//   Launch        cudaLaunchKernelEx alone, synchronous, one at a time; it refuses the sizes that the real one refuses.
//   Threads       One fiber each, in warps of 32 and blocks; several blocks are resident at a time (four, unless told
//                 otherwise), so blocks that wait for each other's flags make progress.
//   Schedule      A thread runs until it must wait: at a barrier, at a warp operation, at __nanosleep. Which thread,
//                 warp and block goes first is the order: forward, reverse or random:SEED, from the environment variable
//                 LEAKYPAR_EMULATION_ORDER or leakypar_emulation_set_order(). The same order gives the same schedule.
//                 A random order also changes threads in front of atomics and fences.
//   Barriers      __syncthreads, __syncwarp and the warp operations wait for every live thread that they name, and
//                 threads that have returned count as arrived, as on the device. A wait that cannot end, a spin that
//                 does not, and one barrier reached at two places in the source abort with a list of who waits where.
//   Shared memory Dynamic only, exactly as many bytes as the launch asked for, so AddressSanitizer sees an overrun; 0xFF
//                 in every byte (a NaN) when a block starts, so a read of what nobody wrote shows.
//   Copies        cp.async of 4, 8 and 16 bytes, with the zeros after a short source. What a copy will overwrite reads as
//                 0xFF from the copy's issue to the wait of the thread that issued it, and the source is read at that
//                 wait: a missing wait, a missing barrier after it and a slot reused too early all show.
//   Matrices      mma.sync and ldmatrix with the fragments of the PTX manual, over all 32 lanes or not at all. TF32
//                 operands lose their lower thirteen bits unless they were rounded before. Products are added in the
//                 order of k, each sum rounded to float32; a device may add in another order.
//   Shuffles      The device's rules for width and range. A value from a lane that takes no part has all bits set.
//
// What is not emulated, and why
//   Memory order  Stores become visible at once and in program order, so a missing __threadfence is not found: that
//                 takes a model of the memory system, and the device's own tools check it on a device.
//   Lockstep      Lanes of a warp meet only where the source says so. No kernel may rely on more since Volta.
//   Preemption    A loop that polls memory must call __nanosleep (or an atomic), or it holds the machine for ever.
//   Time          Nothing here says anything about speed.
//   Also absent: static __shared__ arrays, float atomics (reductions are deterministic), streams that overlap, clusters.
//   Using any of these does not compile or is refused at launch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#include "async_copy.h"
#include "device_functions.h"
#include "matrix.h"
#include "runtime_api.h"
#include "vectors.h"
