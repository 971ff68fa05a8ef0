// The warp operations: when all lanes have come, and what each one gets.
#include <array>

#include "diagnosis.h"
#include "grid.h"
#include "state.h"

namespace leakypar_emulation {
namespace {

bool matches(const WarpRequest& a, const WarpRequest& b) {
  return a.operation == b.operation && a.mask == b.mask && a.bytes == b.bytes && a.collective == b.collective;
}

bool is_shuffle(WarpOperation operation) { return operation >= WarpOperation::shuffle; }

// The lane that a shuffle reads, as PTX defines shfl.sync: the lane's own where the source falls outside the segment.
unsigned shuffle_source(const WarpRequest& request, unsigned lane) {
  const unsigned first = lane & ~(request.width - 1), last = first + request.width - 1;
  switch (request.operation) {
    case WarpOperation::shuffle:
      return first + (request.operand & (request.width - 1));
    case WarpOperation::shuffle_up:
      return lane - first >= request.operand ? lane - request.operand : lane;
    case WarpOperation::shuffle_down:
      return last - lane >= request.operand ? lane + request.operand : lane;
    default:
      return (lane ^ request.operand) <= last ? lane ^ request.operand : lane;
  }
}

void run_collective(Warp& warp, unsigned lanes, const Collective& collective) {
  if (lanes != 0xFFFFFFFFu) fail("%s takes all 32 lanes of a warp, and only 0x%08x came", collective.name, lanes);
  std::array<void*, kWarpLanes> registers;
  for_each_lane(lanes, [&](int lane) { registers[lane] = warp.lanes[lane].request.registers; });
  collective.run(registers.data());
}

// lanes: those that take part.
void complete(Warp& warp, unsigned lanes, WarpOperation operation) {
  if (operation == WarpOperation::collective) {
    run_collective(warp, lanes, *warp.lanes[__builtin_ctz(lanes)].request.collective);
  }
  unsigned votes = 0;
  for_each_lane(lanes, [&](int lane) { votes |= (warp.lanes[lane].request.value & 1u) << lane; });
  for_each_lane(lanes, [&](int number) {
    Lane& lane = warp.lanes[number];
    switch (operation) {
      case WarpOperation::sync:
      case WarpOperation::collective:
        lane.result = 0;
        break;
      case WarpOperation::ballot:
        lane.result = votes;
        break;
      case WarpOperation::any:
        lane.result = votes != 0;
        break;
      case WarpOperation::all:
        lane.result = votes == lanes;
        break;
      default: {
        const unsigned source = shuffle_source(lane.request, static_cast<unsigned>(number));
        const bool defined = (lanes >> source & 1u) != 0;
        lane.result = defined ? warp.lanes[source].request.value : ~std::uint64_t{0};
      }
    }
  });
  warp.at_operation &= ~lanes;
  warp.ready |= lanes;
}

// Ends an operation if every live lane of its mask has come to it.
void complete_if_all_came(Warp& warp, const WarpRequest& request) {
  const unsigned expected = request.mask & warp.live;
  if ((expected & ~warp.at_operation) != 0) return;
  bool same = true;
  for_each_lane(expected, [&](int lane) { same &= matches(warp.lanes[lane].request, request); });
  if (same) complete(warp, expected, request.operation);
}

}  // namespace

void complete_operations(Warp& warp) {
  for_each_lane(warp.at_operation, [&](int lane) {
    const bool still_waits = (warp.at_operation >> lane & 1u) != 0;  // may have ended with an earlier lane's
    if (still_waits) complete_if_all_came(warp, warp.lanes[lane].request);
  });
}

std::uint64_t warp_operation(const WarpRequest& request) {
  require_kernel("a warp operation");
  Lane& lane = *current.lane;
  if ((request.mask & current.bit()) == 0)
    fail("a lane calls a warp operation whose mask 0x%08x leaves it out", request.mask);
  const bool power_of_two = (request.width & (request.width - 1)) == 0;
  if (is_shuffle(request.operation) && (request.width == 0 || request.width > kWarpLanes || !power_of_two)) {
    fail("a shuffle's width is %u, not a power of two up to %d", request.width, kWarpLanes);
  }
  lane.request = request;
  current.warp->at_operation |= current.bit();
  complete_if_all_came(*current.warp, lane.request);
  Fiber::suspend();
  return lane.result;
}

void warp_collective(const Collective& collective, void* registers, std::source_location where) {
  warp_operation({WarpOperation::collective, 0xFFFFFFFFu, 0, 0, 0, 0, where, &collective, registers});
}

}  // namespace leakypar_emulation
