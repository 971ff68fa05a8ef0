// What a test may choose, from the environment or at run time.
#pragma once

#include "order.h"

namespace leakypar_emulation {

struct Settings {
  Order order;          // LEAKYPAR_EMULATION_ORDER: forward (default), reverse or random:SEED
  int resident_blocks;  // LEAKYPAR_EMULATION_RESIDENT: 4
  int multiprocessors;  // LEAKYPAR_EMULATION_MULTIPROCESSORS: 4
  long spin_limit;      // LEAKYPAR_EMULATION_SPIN_LIMIT: yields without progress that make a deadlock; 2^24
  int refusal = 0;      // a cudaError_t with which every launch is refused, or 0
};

// Read from the environment on first use. A value that is not understood ends the process. Touched under the launch
// mutex only.
Settings& settings();

}  // namespace leakypar_emulation
