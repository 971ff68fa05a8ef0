// Loops that the compiler vectorises, compiled for the vectors that the machine turns out to have.
//
// The library is built for the oldest machine of its architecture: on x86-64 that means vectors of 16 bytes. There, a
// body given to with_widest_vectors is compiled a second time, for AVX2, and the processor is asked which to run. The
// wider version computes the same bits: no target here enables fused multiply-add, and -ffp-contract=off keeps it out
// where an architecture always has it.
#pragma once

#include <type_traits>

// For what must be compiled as part of its caller, to use its caller's vectors.
#define LEAKYPAR_ALWAYS_INLINE __attribute__((always_inline))

namespace leakypar::cpu {

#ifdef __x86_64__
template <typename Body>
__attribute__((target("avx2"), flatten)) void with_avx2(const Body& body) {
  body();
}
#endif

// Runs body(), a lambda that is LEAKYPAR_ALWAYS_INLINE as is everything hot that it calls.
template <typename Body>
void with_widest_vectors(const Body& body) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2")) return with_avx2(body);
#endif
  body();
}

// Runs body(std::bool_constant), so that no loop inside has the branch.
template <typename Body>
LEAKYPAR_ALWAYS_INLINE inline void with_flag(bool flag, const Body& body) {
  if (flag) {
    body(std::true_type());
  } else {
    body(std::false_type());
  }
}

}  // namespace leakypar::cpu
