// The CPU's products with events (cpu/events.h) against plain loops in the same order, which must give the same bits, on 1,
// 2, 3 and 8 threads of the standard library. Prints one line for each difference, and exits 1. The last line is a checksum,
// which must not depend on the vectors that the products were compiled for.
#include <array>
#include <cstdio>
#include <limits>
#include <optional>

#include "cpu/element.h"
#include "cpu/events.h"
#include "threads.h"

namespace {

using namespace leakypar;
using cpu::to_element;
using cpu::to_state;

struct Sizes {
  std::int64_t rows, C, H;
};

int found = 0;

void expect(bool holds, const char* what, const char* dtype, const Sizes& sizes) {
  if (holds) return;
  ++found;
  std::printf("%s of %s [%lld, %lld, %lld]\n", what, dtype, static_cast<long long>(sizes.rows),
              static_cast<long long>(sizes.C), static_cast<long long>(sizes.H));
}

template <typename Scalar>
std::vector<Scalar> elements(std::int64_t count, std::uint32_t seed) {
  std::vector<Scalar> values;
  for (const State<Scalar> value : drawn<State<Scalar>>(count, seed)) values.push_back(to_element<Scalar>(value));
  return values;
}

// A third of the features, and minus zero for some of the others.
template <typename Scalar>
std::vector<Scalar> drawn_events(const Sizes& sizes, double value) {
  std::vector<Scalar> x;
  for (const double draw : drawn<double>(sizes.rows * sizes.C, 1)) {
    x.push_back(to_element<Scalar>(static_cast<State<Scalar>>(draw > 0.3 ? value : draw > 0.0 ? -0.0 : 0.0)));
  }
  return x;
}

template <typename Scalar>
std::optional<Scalar> packed(std::vector<std::uint64_t>& bits, const std::vector<Scalar>& x, const Sizes& sizes,
                             const cpu::Threads& threads) {
  bits.resize(sizes.rows * event_words(sizes.C));
  return cpu::pack_events<Scalar>(bits.data(), {x.data(), sizes.rows, 1, sizes.C, sizes.C, sizes.C}, threads);
}

template <typename Scalar>
void compare_products(const char* dtype, const Sizes& sizes, double value) {
  using Real = State<Scalar>;
  const auto [rows, C, H] = sizes;
  const auto x = drawn_events<Scalar>(sizes, value);
  const auto weight = elements<Scalar>(H * C, 2), d_u = elements<Scalar>(rows * H, 3);
  std::vector<Scalar> u(rows * H), expected_u(rows * H);
  std::vector<Real> gradient(H * C), expected_gradient(H * C);
  std::int64_t ones = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    std::vector<Real> sums(H, Real(0));
    for (std::int64_t c = 0; c < C; ++c) {
      if (to_state(x[r * C + c]) == 0) continue;
      ++ones;
      for (std::int64_t h = 0; h < H; ++h) {
        sums[h] += to_state(weight[h * C + c]);
        expected_gradient[h * C + c] += static_cast<Real>(value) * to_state(d_u[r * H + h]);
      }
    }
    for (std::int64_t h = 0; h < H; ++h) expected_u[r * H + h] = to_element<Scalar>(static_cast<Real>(value) * sums[h]);
  }
  for (const int count : thread_counts) {
    const cpu::Threads threads = on_threads(count);
    std::vector<std::uint64_t> bits;
    const auto found_value = packed(bits, x, sizes, threads);
    expect(found_value && (ones == 0 || to_state(*found_value) == value), "events are not found", dtype, sizes);
    expect(cpu::count_ones(bits.data(), bits.size(), threads) == ones, "ones are miscounted", dtype, sizes);
    const cpu::EventRows events = {rows, C, bits.data(), ones > 0 ? value : 0.0};
    std::vector<Scalar> unpacked(rows * C);
    cpu::unpack_events(unpacked.data(), events, threads);
    expect(std::equal(x.begin(), x.end(), unpacked.begin(),
                      [](Scalar one, Scalar other) { return to_state(one) == to_state(other); }),
           "unpacked events differ", dtype, sizes);
    cpu::NeuronTiles<Real> weights(C, H), sums(C, H);
    expect(cpu::pack_weights(weights, weight.data(), C, threads), "finite weights are refused", dtype, sizes);
    cpu::project_events(u.data(), events, weights, threads);
    expect(same_bits(u, expected_u), "projection has other bits", dtype, sizes);
    cpu::add_event_gradient(sums, events, d_u.data(), threads);
    std::fill(gradient.begin(), gradient.end(), Real(0));
    cpu::add_transposed(gradient.data(), sums, threads);
    expect(same_bits(gradient, expected_gradient), "gradient has other bits", dtype, sizes);
  }
  add_to_checksum(u);
  add_to_checksum(gradient);
}

// What is not made of events, or not finite, is seen wherever it stands.
template <typename Scalar>
void compare_refusals(const char* dtype) {
  using Real = State<Scalar>;
  const Sizes sizes = {70, 130, 70};
  const cpu::Threads threads = on_threads(3);
  const auto x = drawn_events<Scalar>(sizes, 1.0), weight = elements<Scalar>(sizes.H * sizes.C, 2);
  const Real infinity = std::numeric_limits<Real>::infinity(), nan = std::numeric_limits<Real>::quiet_NaN();
  std::vector<std::uint64_t> bits;
  for (std::int64_t at = 0; at < sizes.rows * sizes.C; at += 61) {
    for (const Real other : {Real(0.5), Real(-1), infinity, nan}) {
      auto changed = x;
      changed[at] = to_element<Scalar>(other);
      expect(!packed(bits, changed, sizes, threads), "another value passes for an event", dtype, sizes);
    }
  }
  for (std::int64_t at = 0; at < sizes.H * sizes.C; at += 61) {
    for (const Real other : {infinity, -infinity, nan}) {
      auto changed = weight;
      changed[at] = to_element<Scalar>(other);
      cpu::NeuronTiles<Real> tiles(sizes.C, sizes.H);
      expect(!cpu::pack_weights(tiles, changed.data(), sizes.C, threads), "a weight passes for finite", dtype, sizes);
      expect(!cpu::all_finite(changed.data(), sizes.H * sizes.C, threads), "a value passes for finite", dtype, sizes);
    }
  }
  expect(cpu::all_finite(weight.data(), sizes.H * sizes.C, threads), "finite values are refused", dtype, sizes);
}

template <typename Scalar>
void compare_all(const char* dtype) {
  // Ragged in features and neurons; one word and one tile; several tiles; sums beyond the second-level cache.
  for (const Sizes& sizes : {Sizes{70, 130, 37}, {5, 1, 1}, {65, 64, 128}, {33, 200, 300}, {9, 1100, 129}}) {
    compare_products<Scalar>(dtype, sizes, 1.0);
    compare_products<Scalar>(dtype, sizes, -1.5);
  }
  compare_products<Scalar>(dtype, {40, 70, 20}, 0.0);  // no event at all
  compare_refusals<Scalar>(dtype);
}

}  // namespace

int main() {
  compare_all<float>("float32");
  compare_all<double>("float64");
  compare_all<float16>("float16");
  compare_all<bfloat16>("bfloat16");
  std::printf("%016llx\n", static_cast<unsigned long long>(checksum));
  return found > 0;
}
