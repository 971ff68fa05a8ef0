// What a kernel calls: the built-in variables and functions of CUDA C++.
#pragma once

#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <source_location>
#include <type_traits>

#include "grid.h"
#include "vectors.h"

// Set by the scheduler before it continues a thread.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
inline constexpr int warpSize = 32;

// The functions that wait take the place of the call, for the report of a wait that cannot end.
inline void __syncthreads(std::source_location where = std::source_location::current()) {
  leakypar_emulation::block_barrier(where);
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, std::source_location where = std::source_location::current()) {
  leakypar_emulation::warp_operation({leakypar_emulation::WarpOperation::sync, mask, 0, 0, 0, 0, where});
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              std::source_location where = std::source_location::current()) {
  return static_cast<unsigned>(leakypar_emulation::warp_operation(
      {leakypar_emulation::WarpOperation::ballot, mask, predicate != 0, 0, 0, 0, where}));
}

inline int __any_sync(unsigned mask, int predicate, std::source_location where = std::source_location::current()) {
  return static_cast<int>(leakypar_emulation::warp_operation(
      {leakypar_emulation::WarpOperation::any, mask, predicate != 0, 0, 0, 0, where}));
}

inline int __all_sync(unsigned mask, int predicate, std::source_location where = std::source_location::current()) {
  return static_cast<int>(leakypar_emulation::warp_operation(
      {leakypar_emulation::WarpOperation::all, mask, predicate != 0, 0, 0, 0, where}));
}

namespace leakypar_emulation {

template <typename Value>
concept Shuffled = std::is_arithmetic_v<Value> && (sizeof(Value) == 4 || sizeof(Value) == 8);

template <Shuffled Value>
Value shuffle(WarpOperation operation, unsigned mask, Value value, unsigned operand, int width,
              std::source_location where) {
  using Bits = std::conditional_t<sizeof(Value) == 4, std::uint32_t, std::uint64_t>;
  return std::bit_cast<Value>(static_cast<Bits>(warp_operation(
      {operation, mask, std::bit_cast<Bits>(value), sizeof(Value), operand, static_cast<unsigned>(width), where})));
}

}  // namespace leakypar_emulation

template <leakypar_emulation::Shuffled Value>
Value __shfl_sync(unsigned mask, Value value, int source_lane, int width = warpSize,
                  std::source_location where = std::source_location::current()) {
  return leakypar_emulation::shuffle(leakypar_emulation::WarpOperation::shuffle, mask, value,
                                     static_cast<unsigned>(source_lane), width, where);
}

template <leakypar_emulation::Shuffled Value>
Value __shfl_up_sync(unsigned mask, Value value, unsigned delta, int width = warpSize,
                     std::source_location where = std::source_location::current()) {
  return leakypar_emulation::shuffle(leakypar_emulation::WarpOperation::shuffle_up, mask, value, delta, width, where);
}

template <leakypar_emulation::Shuffled Value>
Value __shfl_down_sync(unsigned mask, Value value, unsigned delta, int width = warpSize,
                       std::source_location where = std::source_location::current()) {
  return leakypar_emulation::shuffle(leakypar_emulation::WarpOperation::shuffle_down, mask, value, delta, width, where);
}

template <leakypar_emulation::Shuffled Value>
Value __shfl_xor_sync(unsigned mask, Value value, int lane_mask, int width = warpSize,
                      std::source_location where = std::source_location::current()) {
  return leakypar_emulation::shuffle(leakypar_emulation::WarpOperation::shuffle_xor, mask, value,
                                     static_cast<unsigned>(lane_mask), width, where);
}

inline void __nanosleep(unsigned) { leakypar_emulation::yield(); }
inline void __threadfence() { leakypar_emulation::preemption_point(); }
inline void __threadfence_block() { leakypar_emulation::preemption_point(); }

// Threads change only where they stop, so a read, a change and a write in a row are atomic.
namespace leakypar_emulation {

template <typename Value>
concept Atomic = std::same_as<Value, int> || std::same_as<Value, unsigned> || std::same_as<Value, unsigned long long>;

template <typename Value>
concept Swappable = Atomic<Value> || std::same_as<Value, unsigned short>;

template <typename Value>
Value replace(Value* address, Value value) {
  const Value old = *address;
  *address = value;
  return old;
}

}  // namespace leakypar_emulation

template <leakypar_emulation::Atomic Value>
Value atomicAdd(Value* address, std::type_identity_t<Value> value) {
  leakypar_emulation::preemption_point();
  using Unsigned = std::make_unsigned_t<Value>;  // the device wraps around
  return leakypar_emulation::replace(
      address, static_cast<Value>(static_cast<Unsigned>(*address) + static_cast<Unsigned>(value)));
}

template <leakypar_emulation::Atomic Value>
Value atomicMax(Value* address, std::type_identity_t<Value> value) {
  leakypar_emulation::preemption_point();
  return leakypar_emulation::replace(address, *address < value ? value : *address);
}

template <leakypar_emulation::Atomic Value>
Value atomicMin(Value* address, std::type_identity_t<Value> value) {
  leakypar_emulation::preemption_point();
  return leakypar_emulation::replace(address, value < *address ? value : *address);
}

template <leakypar_emulation::Atomic Value>
Value atomicExch(Value* address, std::type_identity_t<Value> value) {
  leakypar_emulation::preemption_point();
  return leakypar_emulation::replace(address, value);
}

template <leakypar_emulation::Swappable Value>
Value atomicCAS(Value* address, std::type_identity_t<Value> expected, std::type_identity_t<Value> value) {
  leakypar_emulation::preemption_point();
  return leakypar_emulation::replace(address, *address == expected ? value : *address);
}

// Cache hints.
template <typename Value>
Value __ldg(const Value* address) {
  return *address;
}
template <typename Value>
Value __ldcg(const Value* address) {
  return *address;
}
template <typename Value>
Value __ldcs(const Value* address) {
  return *address;
}
template <typename Value>
void __stcg(Value* address, std::type_identity_t<Value> value) {
  *address = value;
}
template <typename Value>
void __stcs(Value* address, std::type_identity_t<Value> value) {
  *address = value;
}

inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
inline double __longlong_as_double(long long bits) { return std::bit_cast<double>(bits); }

inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<unsigned long long>(static_cast<Wide>(a) * b >> 64);
}

inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __popcll(unsigned long long bits) { return std::popcount(bits); }
inline int __clz(int bits) { return std::countl_zero(static_cast<unsigned>(bits)); }
inline int __clzll(long long bits) { return std::countl_zero(static_cast<unsigned long long>(bits)); }
inline int __ffs(int bits) { return bits == 0 ? 0 : 1 + std::countr_zero(static_cast<unsigned>(bits)); }
inline int __ffsll(long long bits) {
  return bits == 0 ? 0 : 1 + std::countr_zero(static_cast<unsigned long long>(bits));
}

// CUDA has these two in the global namespace; of a number and a NaN they return the number.
template <typename Value>
  requires std::is_arithmetic_v<Value>
Value min(Value a, Value b) {
  if constexpr (std::floating_point<Value>) return std::fmin(a, b);
  return b < a ? b : a;
}

template <typename Value>
  requires std::is_arithmetic_v<Value>
Value max(Value a, Value b) {
  if constexpr (std::floating_point<Value>) return std::fmax(a, b);
  return a < b ? b : a;
}
