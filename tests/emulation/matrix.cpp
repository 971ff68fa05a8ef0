#include "matrix.h"

#include <bit>
#include <cstring>

#include "grid.h"
#include "math/scalar.h"
#include "state.h"

namespace leakypar_emulation {
namespace {

constexpr std::uint32_t kTf32Bits = 0xFFFFE000u;

struct MultiplyRegisters {
  float* c;                // [4]
  const std::uint32_t* a;  // [4]
  const std::uint32_t* b;  // [2]
};

// Element `element` of a vector of registers.
template <Multiplicand Kind>
float operand(const std::uint32_t* registers, int element) {
  if constexpr (Kind == Multiplicand::tf32) {
    return std::bit_cast<float>(registers[element] & kTf32Bits);
  } else {
    const auto bits = static_cast<std::uint16_t>(registers[element / 2] >> (element % 2 * 16));
    return Kind == Multiplicand::float16 ? leakypar::widen(leakypar::float16{bits})
                                         : leakypar::widen(leakypar::bfloat16{bits});
  }
}

// Where a lane's elements lie, by the manual's formulas for .m16n8k16 (16 bits) and .m16n8k8 (TF32).
template <Multiplicand Kind>
void run_multiply(void* const* lanes) {
  constexpr bool wide = Kind == Multiplicand::tf32;
  constexpr int depth = wide ? 8 : 16;
  float a[16][depth], b[depth][8];
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const auto& registers = *static_cast<const MultiplyRegisters*>(lanes[lane]);
    const int group = lane / 4, thread = lane % 4;
    for (int i = 0; i < depth / 2; ++i) {
      const bool lower = wide ? i % 2 == 1 : i % 4 >= 2;
      const int column = wide ? thread + i / 2 * 4 : thread * 2 + i % 2 + i / 4 * 8;
      a[group + (lower ? 8 : 0)][column] = operand<Kind>(registers.a, i);
    }
    for (int i = 0; i < depth / 4; ++i) {
      const int row = wide ? thread + i * 4 : thread * 2 + i % 2 + i / 2 * 8;
      b[row][group] = operand<Kind>(registers.b, i);
    }
  }
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const auto& registers = *static_cast<const MultiplyRegisters*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < depth; ++k) registers.c[i] += a[row][k] * b[k][column];
    }
  }
}

struct LoadRegisters {
  std::uint32_t* to;  // [4]
  const void* row;
};

void run_load(void* const* lanes) {
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto& source = *static_cast<const LoadRegisters*>(lanes[matrix * 8 + lane / 4]);
      std::memcpy(static_cast<const LoadRegisters*>(lanes[lane])->to + matrix,
                  static_cast<const char*>(source.row) + lane % 4 * 4, 4);
    }
  }
}

}  // namespace

void multiply(Multiplicand kind, float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
              std::source_location where) {
  static constexpr Collective operations[] = {
      {"mma.sync of float16", run_multiply<Multiplicand::float16>},
      {"mma.sync of bfloat16", run_multiply<Multiplicand::bfloat16>},
      {"mma.sync of TF32", run_multiply<Multiplicand::tf32>},
  };
  MultiplyRegisters registers{c, a, b};
  warp_collective(operations[static_cast<int>(kind)], &registers, where);
}

void load_matrices(std::uint32_t (&to)[4], const void* row, std::source_location where) {
  static constexpr Collective operation{"ldmatrix", run_load};
  require_shared(row, 16, "a row of ldmatrix");
  LoadRegisters registers{to, row};
  warp_collective(operation, &registers, where);
}

std::uint32_t round_to_tf32(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const bool finite = (bits & 0x7F800000u) != 0x7F800000u;
  return finite ? (bits + 0x1000u) & kTf32Bits : bits;
}

}  // namespace leakypar_emulation
