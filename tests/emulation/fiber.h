// A function that can stop in the middle and be continued: one CUDA thread.
#pragma once

#include "context.h"

namespace leakypar_emulation {

// Fibers run on the thread of the operating system that resumes them; the caller sees to it that one thread at a time
// resumes any. An exception that leaves a fiber's function ends the process.
class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Sets the function of a fiber that is new or finished. It starts at the first resume(), which is when it gets a stack.
  void start(void (*function)(void*), void* argument);

  // Runs the fiber until it suspends or returns.
  void resume();

  // Returns from the resume() of the running fiber.
  static void suspend();

  bool finished() const { return finished_; }

 private:
  static void enter() noexcept;

  Context context_;
  void (*function_)(void*) = nullptr;
  void* argument_ = nullptr;
  char* stack_ = nullptr;
  void* fake_stack_ = nullptr;  // AddressSanitizer's, while suspended
  bool finished_ = true;
};

}  // namespace leakypar_emulation
