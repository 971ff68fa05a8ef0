#include "diagnosis.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "state.h"

namespace leakypar_emulation {
namespace {

const char* name(WarpOperation operation) {
  switch (operation) {
    case WarpOperation::sync:
      return "__syncwarp";
    case WarpOperation::ballot:
      return "__ballot_sync";
    case WarpOperation::any:
      return "__any_sync";
    case WarpOperation::all:
      return "__all_sync";
    case WarpOperation::collective:
      return "a matrix instruction";
    case WarpOperation::shuffle:
      return "__shfl_sync";
    case WarpOperation::shuffle_up:
      return "__shfl_up_sync";
    case WarpOperation::shuffle_down:
      return "__shfl_down_sync";
    default:
      return "__shfl_xor_sync";
  }
}

std::string describe(const uint3& index) {
  return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z) + ")";
}

std::string describe(const std::source_location& where) {
  const char* slash = std::strrchr(where.file_name(), '/');
  return std::string(slash != nullptr ? slash + 1 : where.file_name()) + ":" + std::to_string(where.line());
}

std::string describe(const WarpRequest& request) {
  char text[32];
  std::snprintf(text, sizeof text, "(mask 0x%08x)", request.mask);
  return name(request.operation) + std::string(text) + " at " + describe(request.where);
}

std::string state_of(const Block& block, const Warp& warp, int lane) {
  const unsigned bit = 1u << lane;
  if ((warp.live & bit) == 0) return "returned";
  if ((warp.at_barrier & bit) != 0) return "at __syncthreads at " + describe(block.barrier);
  if ((warp.at_operation & bit) != 0) return "at " + describe(warp.lanes[lane].request);
  if ((warp.yielded & bit) != 0) return "in __nanosleep or stepped aside at an atomic";
  return (warp.ready & bit) != 0 ? "can run" : "runs";
}

void print_place() {
  if (!inside_kernel()) return;
  std::fprintf(stderr, "  in block %s, thread %s\n", describe(current.block->index).c_str(),
               describe(current.lane->thread).c_str());
}

// "0-31,40" of ascending numbers.
class Ranges {
 public:
  void add(int number) {
    if (last_ >= 0 && number == last_ + 1) {
      last_ = number;
      return;
    }
    flush();
    first_ = last_ = number;
  }

  std::string text() {
    flush();
    return text_;
  }

 private:
  void flush() {
    if (last_ < 0) return;
    text_ += (text_.empty() ? "" : ",") + std::to_string(first_);
    if (last_ > first_) text_ += "-" + std::to_string(last_);
  }

  int first_ = -1, last_ = -1;
  std::string text_;
};

}  // namespace

void fail(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::fprintf(stderr, "leakypar emulation: ");
  std::vfprintf(stderr, format, arguments);
  std::fprintf(stderr, "\n");
  va_end(arguments);
  print_place();
  std::abort();
}

void fail_waiting(const char* problem, const Launch& launch) {
  std::fprintf(stderr, "leakypar emulation: %s\n", problem);
  print_place();
  for (const Block& block : launch.residents) {
    if (block.live == 0) continue;
    std::map<std::string, Ranges> threads;
    for (int i = 0; i < block.threads; ++i) {
      threads[state_of(block, block.warps[i / kWarpLanes], i % kWarpLanes)].add(i);
    }
    std::fprintf(stderr, "  block %s:\n", describe(block.index).c_str());
    for (auto& [state, numbers] : threads) {
      std::fprintf(stderr, "    threads %s: %s\n", numbers.text().c_str(), state.c_str());
    }
  }
  std::abort();
}

void fail_barrier(std::source_location where) {
  fail_waiting(("one barrier reached at two places, now at " + describe(where)).c_str(), *current.launch);
}

void require_kernel(const char* what) {
  if (!inside_kernel()) fail("%s is called outside a kernel", what);
}

bool same_place(const std::source_location& a, const std::source_location& b) {
  const auto same_file = [&] { return a.file_name() == b.file_name() || !std::strcmp(a.file_name(), b.file_name()); };
  return a.line() == b.line() && a.column() == b.column() && same_file();
}

}  // namespace leakypar_emulation
