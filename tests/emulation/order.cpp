#include "order.h"

#include <charconv>

namespace leakypar_emulation {

std::optional<Order> Order::parse(std::string_view text) {
  if (text == "forward") return Order(Kind::forward, 0);
  if (text == "reverse") return Order(Kind::reverse, 0);
  constexpr std::string_view random = "random:";
  if (!text.starts_with(random)) return std::nullopt;
  const char* first = text.data() + random.size();
  const char* last = text.data() + text.size();
  std::uint64_t seed;
  const auto [end, error] = std::from_chars(first, last, seed);
  if (error != std::errc() || end != last) return std::nullopt;
  return Order(Kind::random, seed);
}

// SplitMix64. The bias of the remainder is below 2^-48 for the bounds in use.
std::uint64_t Order::draw(std::uint64_t bound) {
  std::uint64_t z = state_ += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return (z ^ (z >> 31)) % bound;
}

}  // namespace leakypar_emulation
