// The machine's part of a fiber: a stack pointer that one call exchanges for another, with no system call.
#pragma once

#include <cstddef>

#if defined(__ELF__) && (defined(__x86_64__) || defined(__aarch64__)) && !defined(LEAKYPAR_EMULATION_UCONTEXT)
#define LEAKYPAR_EMULATION_ASSEMBLY
#else
#include <ucontext.h>
#endif

namespace leakypar_emulation {

struct Context {
#ifdef LEAKYPAR_EMULATION_ASSEMBLY
  void* stack_pointer = nullptr;
#else
  ucontext_t state;
#endif
};

#ifdef LEAKYPAR_EMULATION_ASSEMBLY
// Pushes the registers that a call preserves, stores the stack pointer in *save, takes `load` as the stack pointer and
// pops the same registers from there. The floating-point control registers stay: rounding and denormal modes belong to
// the operating system's thread, as torch sets them.
extern "C" void leakypar_emulation_switch(void** save, void* load);
#endif

// Makes `context` one that calls entry() on an empty stack. entry() must never return.
void prepare_context(Context& context, void* stack, std::size_t stack_bytes, void (*entry)());

// Saves the caller in `from` and continues `to`; returns when something continues `from`.
inline void switch_context(Context& from, const Context& to) {
#ifdef LEAKYPAR_EMULATION_ASSEMBLY
  leakypar_emulation_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.state, &to.state);
#endif
}

}  // namespace leakypar_emulation
