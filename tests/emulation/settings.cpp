#include "settings.h"

#include <charconv>
#include <cstdlib>
#include <cstring>

#include "diagnosis.h"

namespace leakypar_emulation {
namespace {

Order order_from_environment() {
  const char* text = std::getenv("LEAKYPAR_EMULATION_ORDER");
  const auto order = Order::parse(text != nullptr ? text : "forward");
  if (!order) fail("LEAKYPAR_EMULATION_ORDER is \"%s\"; expected forward, reverse or random:SEED", text);
  return *order;
}

template <typename Number>
Number positive_from_environment(const char* name, Number otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr) return otherwise;
  Number number;
  const char* last = text + std::strlen(text);
  const auto [end, error] = std::from_chars(text, last, number);
  if (error != std::errc() || end != last || number < 1) fail("%s is \"%s\"; expected a positive number", name, text);
  return number;
}

}  // namespace

Settings& settings() {
  static Settings settings{
      order_from_environment(),
      positive_from_environment("LEAKYPAR_EMULATION_RESIDENT", 4),
      positive_from_environment("LEAKYPAR_EMULATION_MULTIPROCESSORS", 4),
      positive_from_environment("LEAKYPAR_EMULATION_SPIN_LIMIT", 1L << 24),
  };
  return settings;
}

}  // namespace leakypar_emulation
