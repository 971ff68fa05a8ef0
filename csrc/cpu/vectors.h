// Loops that the compiler vectorises, compiled for the vectors that the machine turns out to have.
//
// The library is built for the oldest machine of its architecture: on x86-64 that means vectors of 16 bytes. There, a
// body given to dispatch_vectors is compiled for AVX2 and for AVX-512 too, and the processor is asked which to run.
// All compute the same bits: -ffp-contract=off keeps fused multiply-add out where a target has it. The scans alone come
// from the cache as fast as AVX2 takes them; 16-bit conversions and dropout's generator are what AVX-512 makes faster.
#pragma once

#include <type_traits>

// The widest vectors to use, in bytes, so that the tests can compare them.
#ifndef LEAKYPAR_WIDEST_VECTORS
#define LEAKYPAR_WIDEST_VECTORS 64
#endif

// For what must be compiled as part of its caller, to use its caller's vectors.
#define LEAKYPAR_ALWAYS_INLINE __attribute__((always_inline))

// Before a loop of which no iteration touches what another one writes.
#ifdef __clang__
#define LEAKYPAR_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define LEAKYPAR_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace leakypar::cpu {

#ifdef __x86_64__
template <typename Body>
__attribute__((target("avx2"), flatten)) void with_avx2(const Body& body) {
  body();
}

// Clang refuses the whole attribute where it says which vectors to prefer, and takes the widest.
#ifdef __clang__
#define LEAKYPAR_AVX512 "avx512f,avx512bw,avx512dq,avx512vl"
#else
#define LEAKYPAR_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"
#endif

template <typename Body>
__attribute__((target(LEAKYPAR_AVX512), flatten)) void with_avx512(const Body& body) {
  body();
}

inline bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// Runs body(std::integral_constant<int, bytes of a vector>), a lambda that is LEAKYPAR_ALWAYS_INLINE as is everything hot
// that it calls.
template <typename Body>
void dispatch_widths(const Body& body) {
#ifdef __x86_64__
  if (LEAKYPAR_WIDEST_VECTORS >= 64 && has_avx512()) {
    return with_avx512([&]() LEAKYPAR_ALWAYS_INLINE { body(std::integral_constant<int, 64>()); });
  }
  if (LEAKYPAR_WIDEST_VECTORS >= 32 && __builtin_cpu_supports("avx2")) {
    return with_avx2([&]() LEAKYPAR_ALWAYS_INLINE { body(std::integral_constant<int, 32>()); });
  }
#endif
  body(std::integral_constant<int, 16>());
}

// Runs body(), such a lambda that need not know the width.
template <typename Body>
void dispatch_vectors(const Body& body) {
  dispatch_widths([&](auto) LEAKYPAR_ALWAYS_INLINE { body(); });
}

// Runs body(std::bool_constant), so that no loop inside has the branch.
template <typename Body>
LEAKYPAR_ALWAYS_INLINE inline void dispatch_flag(bool flag, const Body& body) {
  if (flag) {
    body(std::true_type());
  } else {
    body(std::false_type());
  }
}

}  // namespace leakypar::cpu
