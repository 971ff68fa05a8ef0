// Packs, unpacks or multiplies an input of events, for tools/instructions.py to count: ROWS rows of 1024 features, every 16th of which
// is one, beside 128 neurons of float32.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../csrc/cpu/events.h"

using namespace leakypar;

int main(int count, char** words) {
  if (count != 4) {
    std::fprintf(stderr, "usage: %s pack|unpack|project|gradient ROWS REPEATS\n", words[0]);
    return 2;
  }
  const std::string loop = words[1];
  const std::int64_t rows = std::atoll(words[2]), repeats = std::atoll(words[3]);
  constexpr std::int64_t C = 1024, H = 128, apart = 16;
  const cpu::Threads one_thread = {1, [](std::int64_t n, std::int64_t, const auto& body) { body(0, n); }};
  std::vector<float> x(rows * C), u(rows * H);
  for (std::int64_t i = 0; i < rows * C; i += apart) x[i] = 1.0f;
  cpu::NeuronTiles<float> tiles(C, H);
  std::vector<std::uint64_t> bits(rows * event_words(C));
  const cpu::InputRows<float> from = {x.data(), rows, 1, C, C, C};
  if (!cpu::pack_events(bits.data(), from, one_thread)) return 1;
  const cpu::EventRows events = {rows, C, bits.data(), 1.0};
  for (std::int64_t i = 0; i < repeats; ++i) {
    if (loop == "pack") cpu::pack_events(bits.data(), from, one_thread);
    if (loop == "unpack") cpu::unpack_events(x.data(), events, one_thread);
    if (loop == "project") cpu::project_events(u.data(), events, tiles, one_thread);
    if (loop == "gradient") cpu::add_event_gradient(tiles, events, u.data(), one_thread);
  }
  std::printf("%g\n", static_cast<double>(u[0]));
}
