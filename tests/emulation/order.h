// Which thread goes first. A correct kernel gives the same bits in every order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

namespace leakypar_emulation {

class Order {
 public:
  // "forward", "reverse" or "random:SEED"; nothing for any other text.
  static std::optional<Order> parse(std::string_view text);

  bool reversed() const { return kind_ == Kind::reverse; }

  // Puts ascending items into this order.
  template <typename Item>
  void arrange(std::span<Item> items) {
    if (kind_ == Kind::reverse) std::reverse(items.begin(), items.end());
    if (kind_ != Kind::random) return;
    for (std::size_t left = items.size(); left > 1; --left) std::swap(items[draw(left)], items[left - 1]);
  }

  // Whether to go on with the same lanes or warp while they can run: always, but in a random order.
  bool persists() { return kind_ != Kind::random || draw(4) != 0; }

  // How many turns a block now sits out: none, but in a random order, where a few are long enough for other blocks to
  // pass many barriers meanwhile.
  int absence() {
    const bool present = kind_ != Kind::random || draw(8) != 0;
    return present ? 0 : static_cast<int>(draw(std::uint64_t{1} << draw(10)));
  }

  // How many atomics and fences a thread gets through before it steps aside: many, but in a random order.
  int patience() { return kind_ != Kind::random ? 1000 : static_cast<int>(draw(4)); }

 private:
  enum class Kind { forward, reverse, random };

  Order(Kind kind, std::uint64_t seed) : kind_(kind), state_(seed) {}

  std::uint64_t draw(std::uint64_t bound);  // uniform in [0, bound)

  Kind kind_;
  std::uint64_t state_;
};

}  // namespace leakypar_emulation
