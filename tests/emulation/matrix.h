// The matrix instructions: mma.sync and ldmatrix, with the fragments that the PTX manual gives each lane.
#pragma once

#include <cstdint>
#include <source_location>

namespace leakypar_emulation {

enum class Multiplicand { float16, bfloat16, tf32 };

// c += a b for a [16, 16] and b [16, 8] in 16 bits, or a [16, 8] and b [8, 8] in TF32.
void multiply(Multiplicand kind, float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
              std::source_location where);

// Four matrices of 8 rows by 16 bytes. Lane i gives the address of row i % 8 of matrix i / 8, and gets 4 bytes of each.
void load_matrices(std::uint32_t (&to)[4], const void* row, std::source_location where);

// To eleven significant bits, to nearest, ties away from zero.
std::uint32_t round_to_tf32(float value);

}  // namespace leakypar_emulation
