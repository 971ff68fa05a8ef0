// Shuffles, votes, partial masks and threads that return early, each against its definition.
#include "harness.h"

namespace {

constexpr unsigned kAll = 0xFFFFFFFFu;

struct Shuffles {
  float index, up, down, exchange;
  double wide;
};

__global__ void shuffle(Shuffles* out, int operand, int width) {
  const int lane = static_cast<int>(threadIdx.x);
  const float value = static_cast<float>(100 + lane);
  out[lane].index = __shfl_sync(kAll, value, operand, width);
  out[lane].up = __shfl_up_sync(kAll, value, static_cast<unsigned>(operand), width);
  out[lane].down = __shfl_down_sync(kAll, value, static_cast<unsigned>(operand), width);
  out[lane].exchange = __shfl_xor_sync(kAll, value, operand, width);
  out[lane].wide = __shfl_xor_sync(kAll, 1.0 / (100 + lane), operand, width);
}

void run_shuffles() {
  for (int width = 1; width <= 32; width *= 2) {
    for (int operand = 0; operand < 32; ++operand) {
      planted::Array<Shuffles> out(32);
      planted::launch(shuffle, 1, 32, 0, out.data(), operand, width);
      for (int lane = 0; lane < 32; ++lane) {
        const int first = lane / width * width, place = lane % width;
        const auto is = [&](float got, int source) { return got == static_cast<float>(100 + source); };
        // CUDA's guide: the index wraps within the segment; up, down and xor keep the own value outside it. An xor may
        // reach into an earlier segment.
        const int partner = lane ^ operand;
        const int exchanged = partner < first + width ? partner : lane;
        planted::expect(is(out[lane].index, first + operand % width), "__shfl_sync", lane);
        planted::expect(is(out[lane].up, place >= operand ? lane - operand : lane), "__shfl_up_sync", lane);
        planted::expect(is(out[lane].down, place + operand < width ? lane + operand : lane), "__shfl_down_sync", lane);
        planted::expect(is(out[lane].exchange, exchanged), "__shfl_xor_sync", lane);
        planted::expect(out[lane].wide == 1.0 / (100 + exchanged), "a 64-bit __shfl_xor_sync", lane);
      }
    }
  }
}

// Every lane's predicate is its bit of `bits`. Lanes of the last warp beyond the block count as returned.
__global__ void vote(unsigned* out, unsigned bits) {
  const int lane = static_cast<int>(threadIdx.x) % warpSize;
  const int predicate = static_cast<int>(bits >> lane & 1u) * 8;  // any non-zero number is true
  unsigned* mine = out + 3 * threadIdx.x;
  mine[0] = __ballot_sync(kAll, predicate);
  mine[1] = static_cast<unsigned>(__any_sync(kAll, predicate));
  mine[2] = static_cast<unsigned>(__all_sync(kAll, predicate));
}

void run_votes() {
  constexpr int threads = 32 + 5;
  for (const unsigned bits : {0u, 1u, 0x1Fu, 0x80000000u, 0xDEADBEEFu, kAll}) {
    planted::Array<unsigned> out(3 * threads);
    planted::launch(vote, 1, threads, 0, out.data(), bits);
    for (int i = 0; i < threads; ++i) {
      const unsigned live = i < 32 ? kAll : 0x1Fu;
      planted::expect(out[3 * i] == (bits & live), "__ballot_sync", i);
      planted::expect(out[3 * i + 1] == ((bits & live) != 0), "__any_sync", i);
      planted::expect(out[3 * i + 2] == ((bits & live) == live), "__all_sync", i);
    }
  }
}

// The halves of a warp part ways, and each does other operations, another number of times.
__global__ void diverge(float* out) {
  const int lane = static_cast<int>(threadIdx.x);
  float value = static_cast<float>(lane);
  if (lane < 16) {
    for (int distance = 8; distance > 0; distance /= 2) value += __shfl_xor_sync(0x0000FFFFu, value, distance);
  } else {
    value = __shfl_sync(0xFFFF0000u, value, 20) + static_cast<float>(__popc(__ballot_sync(0xFFFF0000u, lane % 2)));
  }
  __syncwarp();
  out[lane] = __shfl_xor_sync(kAll, value, 16);
}

void run_divergence() {
  planted::Array<float> out(32);
  planted::launch(diverge, 1, 32, 0, out.data());
  for (int lane = 0; lane < 32; ++lane) {
    planted::expect(out[lane] == (lane < 16 ? 20.0f + 8.0f : 120.0f), "the other half's value", lane);
  }
}

// Threads at and beyond `stay` return at once; the others still meet at barriers and in full-mask operations. What a
// shuffle reads from a lane that has returned is undefined, and here has all bits set.
__global__ void leave(unsigned* out, int stay) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= stay) return;
  auto* values = static_cast<unsigned*>(leakypar::cuda::shared_memory());  // [blockDim.x]
  values[i] = static_cast<unsigned>(i);
  __syncthreads();
  const unsigned voters = __ballot_sync(kAll, 1);
  const unsigned neighbour = __shfl_down_sync(kAll, values[stay - 1 - i], 1);
  __syncthreads();
  out[2 * i] = voters;
  out[2 * i + 1] = neighbour;
}

void run_early_return() {
  constexpr int threads = 128;
  for (int stay = 1; stay <= threads; ++stay) {
    planted::Array<unsigned> out(2 * threads);
    planted::launch(leave, 1, threads, threads * sizeof(unsigned), out.data(), stay);
    for (int i = 0; i < stay; ++i) {
      const int live = stay - i / 32 * 32;
      planted::expect(out[2 * i] == (live >= 32 ? kAll : (1u << live) - 1u), "the ballot of those that stay", i);
      const bool last_lane = i % 32 == 31, next_left = i + 1 == stay;
      const int source = last_lane ? i : i + 1;
      planted::expect(out[2 * i + 1] == (next_left && !last_lane ? kAll : static_cast<unsigned>(stay - 1 - source)),
                      "the next lane's value", i);
    }
  }
}

const planted::Register registered[] = {
    {"shuffles", run_shuffles},
    {"votes", run_votes},
    {"divergence", run_divergence},
    {"early-return", run_early_return},
};

}  // namespace
