// What is said when a kernel does what a device would not survive.
#pragma once

#include <source_location>

namespace leakypar_emulation {

struct Launch;

// Prints one line, with the place of the running thread, on standard error, and aborts.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The same with a list of what every thread of the resident blocks waits for.
[[noreturn]] void fail_waiting(const char* problem, const Launch& launch);

// The same for a thread that comes to a __syncthreads while others of its block wait at another.
[[noreturn]] void fail_barrier(std::source_location where);

// Fails where no kernel runs.
void require_kernel(const char* what);

bool same_place(const std::source_location& a, const std::source_location& b);

}  // namespace leakypar_emulation
