// The matrix instructions: c += a b over a warp, and the loads that put shared memory into their fragments.
//
// A fragment's register holds four bytes of a row: two 16-bit values or one TF32. A matrix of 8 rows by 16 bytes, spread so
// that lane 4 r + t holds bytes 4 t to 4 t + 3 of row r, is the unit of every operand: a [16 rows, 32 bytes of k] is four
// of them, b [8 columns, 32 bytes of k] is two. So one ldmatrix, whose type is 16-bit in name only, loads either kind
// from rows with k contiguous, and a step of the product advances 32 bytes in k: 16 values of 16 bits, or 8 of TF32.
//
//   c[0], c[1]   row lane / 4,       columns 2 (lane % 4) and the next
//   c[2], c[3]   row lane / 4 + 8,   the same columns
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../math/scalar.h"

#ifndef __CUDACC__
#include <source_location>
#endif

namespace leakypar::cuda {

using Fragment = std::uint32_t;  // four bytes of k

#ifdef __CUDACC__
// Four matrices of 8 rows by 16 bytes: lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(Fragment (&to)[4], const void* row) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void multiply(bfloat16, float (&c)[4], const Fragment (&a)[4], const Fragment (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void multiply(float16, float (&c)[4], const Fragment (&a)[4], const Fragment (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void multiply(float, float (&c)[4], const Fragment (&a)[4], const Fragment (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ Fragment round_to_tf32(Fragment bits) {
  Fragment rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}
#else
inline void load_matrices(Fragment (&to)[4], const void* row,
                          std::source_location where = std::source_location::current()) {
  leakypar_emulation::load_matrices(to, row, where);
}

template <typename Scalar>
void multiply(Scalar, float (&c)[4], const Fragment (&a)[4], const Fragment (&b)[2],
              std::source_location where = std::source_location::current()) {
  using leakypar_emulation::Multiplicand;
  constexpr auto kind = std::is_same_v<Scalar, float>      ? Multiplicand::tf32
                        : std::is_same_v<Scalar, bfloat16> ? Multiplicand::bfloat16
                                                           : Multiplicand::float16;
  leakypar_emulation::multiply(kind, c, a, b, where);
}

inline Fragment round_to_tf32(Fragment bits) { return leakypar_emulation::round_to_tf32(__uint_as_float(bits)); }
#endif

// What the instructions take of a float32 is its upper 19 bits: to round to nearest instead of cutting off is the
// program's part, as the vendor's own products do. 16-bit fragments are taken as they are.
template <typename Scalar, int Count>
__device__ __forceinline__ void round_operand(Fragment (&fragments)[Count]) {
  if constexpr (sizeof(Scalar) == 4) {
#pragma unroll
    for (int i = 0; i < Count; ++i) fragments[i] = round_to_tf32(fragments[i]);
  }
}

}  // namespace leakypar::cuda
