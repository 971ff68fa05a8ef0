// Sequences of a batch that end before the arrays do.
#pragma once

#include <cstdint>

#include "scalar.h"

namespace leakypar {

// After its own last step a sequence spikes no more, its membrane is held, and no gradient comes from there.
struct Lengths {
  const std::int64_t* length;  // [N], in steps of the call, or null where every sequence has them all
  std::int64_t first;          // the step that the arrays begin with

  // How many of T steps sequence n has: a number of these, whatever its length says.
  LEAKYPAR_HOST_DEVICE std::int64_t steps(std::int64_t n, std::int64_t T) const {
    if (length == nullptr) return T;
    const std::int64_t left = length[n] - first;
    return left < 0 ? 0 : (left < T ? left : T);
  }
};

}  // namespace leakypar
