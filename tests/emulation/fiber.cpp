#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <vector>

#include "diagnosis.h"

#if defined(__SANITIZE_ADDRESS__)
#define LEAKYPAR_EMULATION_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LEAKYPAR_EMULATION_ASAN
#endif
#endif

#ifdef LEAKYPAR_EMULATION_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace leakypar_emulation {
namespace {

#ifdef LEAKYPAR_EMULATION_ASAN
constexpr std::size_t kStackBytes = 256 << 10;  // red zones make frames several times larger
#else
constexpr std::size_t kStackBytes = 64 << 10;
#endif

Context host;
Fiber* running = nullptr;
const void* host_stack = nullptr;
std::size_t host_stack_bytes = 0;

// AddressSanitizer follows the stack pointer: it is told of every switch before it is made and after. A null `save`
// says that the stack being left is never returned to.
void announce_switch([[maybe_unused]] void** save, [[maybe_unused]] const void* stack,
                     [[maybe_unused]] std::size_t bytes) {
#ifdef LEAKYPAR_EMULATION_ASAN
  __sanitizer_start_switch_fiber(save, stack, bytes);
#endif
}

void confirm_switch([[maybe_unused]] void* saved, [[maybe_unused]] const void** left_stack,
                    [[maybe_unused]] std::size_t* left_bytes) {
#ifdef LEAKYPAR_EMULATION_ASAN
  __sanitizer_finish_switch_fiber(saved, left_stack, left_bytes);
#endif
}

// Stacks outlive their fibers and are reused last in, first out: where no thread waits, a whole grid runs on one stack
// that stays in cache.
std::vector<char*> idle_stacks;

char* take_stack() {
  if (!idle_stacks.empty()) {
    char* stack = idle_stacks.back();
    idle_stacks.pop_back();
    return stack;
  }
  const auto guard = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));  // stacks grow down into it, and fault
  void* memory = mmap(nullptr, guard + kStackBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fail("no memory for the stack of one more thread");
  char* stack = static_cast<char*>(memory) + guard;
  if (mprotect(stack, kStackBytes, PROT_READ | PROT_WRITE) != 0) fail("no memory for the stack of one more thread");
  return stack;
}

}  // namespace

void Fiber::start(void (*function)(void*), void* argument) {
  function_ = function;
  argument_ = argument;
  finished_ = false;
}

void Fiber::resume() {
  if (stack_ == nullptr) {
    stack_ = take_stack();
    prepare_context(context_, stack_, kStackBytes, reinterpret_cast<void (*)()>(&Fiber::enter));
  }
  running = this;
  void* host_fake_stack = nullptr;
  announce_switch(&host_fake_stack, stack_, kStackBytes);
  switch_context(host, context_);
  confirm_switch(host_fake_stack, nullptr, nullptr);
  if (finished_) {
    idle_stacks.push_back(stack_);
    stack_ = nullptr;
  }
}

void Fiber::suspend() {
  Fiber& self = *running;
  announce_switch(&self.fake_stack_, host_stack, host_stack_bytes);
  switch_context(self.context_, host);
  confirm_switch(self.fake_stack_, &host_stack, &host_stack_bytes);
}

// Not instrumented: this frame is left and never returned from, so its red zones would stay on the stack.
__attribute__((no_sanitize("address"))) void Fiber::enter() noexcept {
  confirm_switch(nullptr, &host_stack, &host_stack_bytes);
  Fiber& self = *running;
  self.function_(self.argument_);
  self.finished_ = true;
  announce_switch(nullptr, host_stack, host_stack_bytes);
  switch_context(self.context_, host);
  __builtin_unreachable();
}

}  // namespace leakypar_emulation
