#include "context.h"

#include <cstdint>

#ifdef LEAKYPAR_EMULATION_ASSEMBLY

// It ends in a jump where a return would do: the processor predicts a return to the caller, which is never where it goes.
#ifdef __x86_64__
asm(R"(
    .text
    .globl leakypar_emulation_switch
    .hidden leakypar_emulation_switch
    .type leakypar_emulation_switch, @function
    .p2align 4
leakypar_emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rcx
    jmp *%rcx
    .size leakypar_emulation_switch, . - leakypar_emulation_switch
)");
#else
asm(R"(
    .text
    .globl leakypar_emulation_switch
    .hidden leakypar_emulation_switch
    .type leakypar_emulation_switch, %function
    .p2align 4
leakypar_emulation_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    br x30
    .size leakypar_emulation_switch, . - leakypar_emulation_switch
)");
#endif

namespace leakypar_emulation {

// Lays out the frame that the switch pops: zero registers, so that a debugger's walk ends here, and entry as the return
// address.
void prepare_context(Context& context, void* stack, std::size_t stack_bytes, void (*entry)()) {
  auto* top = reinterpret_cast<void**>(static_cast<char*>(stack) + stack_bytes);
#ifdef __x86_64__
  constexpr int kSaved = 6;
  *--top = nullptr;  // where a caller's address would be: entry() starts eight bytes off a multiple of sixteen
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSaved; ++i) *--top = nullptr;
#else
  constexpr int kSaved = 20, kLinkRegister = 11;
  top -= kSaved;
  for (int i = 0; i < kSaved; ++i) top[i] = nullptr;
  top[kLinkRegister] = reinterpret_cast<void*>(entry);
#endif
  context.stack_pointer = top;
}

}  // namespace leakypar_emulation

#else

namespace leakypar_emulation {

void prepare_context(Context& context, void* stack, std::size_t stack_bytes, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = stack_bytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}

}  // namespace leakypar_emulation

#endif
