// The CPU's scans on 1, 2, 3 and 8 threads of the standard library, which a thread sanitizer can follow. Every array that
// they leave must have the same bits for any number of threads, and the same values to rounding where time is cut into
// segments. Prints one line for each that has not, and exits 1. The last line is a checksum of the results on one thread, which
// must not depend on the vectors that the scans were compiled for.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cpu/dropout.h"
#include "cpu/segments.h"
#include "threads.h"

namespace {

using namespace leakypar;

template <typename Scalar, typename Projected>
struct Results {
  using Real = State<Scalar>;
  std::vector<Scalar> spikes, membrane;
  std::vector<Projected> grad_u;
  std::vector<Real> last, grad_initial_membrane, sum_bias, sum_decay, sum_threshold, sum_gain;
};

template <typename Scalar, typename Projected>
Results<Scalar, Projected> run(std::int64_t T, std::int64_t N, std::int64_t H, int threads, double drive = 0.0,
                               bool drops = false, Surrogate surrogate = {SurrogateKind::atan, 2.0, 0.0}) {
  using Real = State<Scalar>;
  const std::int64_t M = N * H;
  std::vector<Projected> u;
  for (const Real value : drawn<Real>(T * M, 1)) u.push_back(narrow<Projected>(value + static_cast<Real>(drive)));
  const auto initial = drawn<Real>(M, 2), grad_final_membrane = drawn<Real>(M, 3);
  const auto decay = drawn<Real>(H, 4), threshold = drawn<Real>(H, 5), gain = drawn<Real>(H, 6);
  constexpr DType dtype = sizeof(Real) == sizeof(double) ? DType::float64 : DType::float32;
  const auto parameter = [](const std::vector<Real>& values) { return Parameter{values.data(), dtype, 1}; };

  Results<Scalar, Projected> r;
  r.spikes.resize(T * M);
  r.membrane.resize(T * M);
  r.grad_u.resize(T * M);
  for (auto* state : {&r.last, &r.grad_initial_membrane, &r.sum_bias, &r.sum_decay, &r.sum_threshold, &r.sum_gain}) {
    state->resize(M);
  }
  ScanForward<Scalar, Projected> forward = {};
  forward.T = T;
  forward.N = N;
  forward.H = H;
  forward.u = u.data();
  forward.neurons.bias_ih = forward.neurons.decay = parameter(decay);
  forward.neurons.threshold = parameter(threshold);
  forward.neurons.gain = parameter(gain);
  forward.initial_membrane = initial.data();
  forward.outputs.spikes = r.spikes.data();
  forward.outputs.membrane = r.membrane.data();
  forward.outputs.final_membrane = r.last.data();
  const std::int64_t seed = 7;
  if (drops) forward.dropout = {&seed, 1 << (Dropout::resolution - 2), 4.0 / 3.0, 0};
  cpu::scan_forward(forward, on_threads(threads));

  ScanBackward<Scalar, Projected> backward = {};
  backward.T = T;
  backward.N = N;
  backward.H = H;
  backward.grad_spikes = r.membrane.data();
  backward.grad_final_membrane = grad_final_membrane.data();
  backward.membrane = r.membrane.data();
  backward.initial_membrane = initial.data();
  backward.neurons.decay = parameter(decay);
  backward.neurons.threshold = parameter(threshold);
  backward.neurons.gain = parameter(gain);
  backward.surrogate = surrogate;
  backward.dropout = forward.dropout;
  backward.grad_u = r.grad_u.data();
  backward.grad_initial_membrane = r.grad_initial_membrane.data();
  backward.sum_bias = r.sum_bias.data();
  backward.sum_decay = r.sum_decay.data();
  backward.sum_threshold = r.sum_threshold.data();
  backward.sum_gain = r.sum_gain.data();
  cpu::scan_backward(backward, on_threads(threads));
  return r;
}

template <typename Scalar, typename Projected = State<Scalar>>
int differences(const char* dtype, std::int64_t T, std::int64_t N, std::int64_t H, bool drops = false,
                Surrogate surrogate = {SurrogateKind::atan, 2.0, 0.0}) {
  if (!compares) {
    run<Scalar, Projected>(T, N, H, thread_counts[0], 0.0, drops, surrogate);
    return 0;
  }
  const auto one = run<Scalar, Projected>(T, N, H, 1, 0.0, drops, surrogate);
  add_to_checksum(one.spikes);
  add_to_checksum(one.membrane);
  add_to_checksum(one.grad_u);
  for (const auto* sums :
       {&one.last, &one.grad_initial_membrane, &one.sum_bias, &one.sum_decay, &one.sum_threshold, &one.sum_gain}) {
    add_to_checksum(*sums);
  }
  int found = 0;
  for (const int threads : thread_counts) {
    const auto many = run<Scalar, Projected>(T, N, H, threads, 0.0, drops, surrogate);
    const auto compare = [&](const char* name, bool same) {
      if (same) return;
      ++found;
      std::printf("%s of %s [%lld, %lld, %lld]: other bits on %d threads\n", name, dtype, static_cast<long long>(T),
                  static_cast<long long>(N), static_cast<long long>(H), threads);
    };
    compare("spikes", same_bits(one.spikes, many.spikes));
    compare("membrane", same_bits(one.membrane, many.membrane));
    compare("last", same_bits(one.last, many.last));
    compare("grad_u", same_bits(one.grad_u, many.grad_u));
    compare("grad_initial_membrane", same_bits(one.grad_initial_membrane, many.grad_initial_membrane));
    compare("sum_bias", same_bits(one.sum_bias, many.sum_bias));
    compare("sum_decay", same_bits(one.sum_decay, many.sum_decay));
    compare("sum_threshold", same_bits(one.sum_threshold, many.sum_threshold));
    compare("sum_gain", same_bits(one.sum_gain, many.sum_gain));
  }
  return found;
}

// Eight threads cut time; the results must be those of one, to float64's rounding over the run.
int differences_of_segments(std::int64_t T, std::int64_t N, std::int64_t H, double drive, bool drops = false) {
  const auto eight = run<double, double>(T, N, H, 8, drive, drops);
  if (!compares) return 0;
  const auto one = run<double, double>(T, N, H, 1, drive, drops);
  int found = 0;
  const auto compare = [&](const char* name, const std::vector<double>& exact, const std::vector<double>& cut) {
    double scale = 0, error = 0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
      scale = std::max(scale, std::fabs(exact[i]));
      error = std::max(error, std::fabs(exact[i] - cut[i]));
    }
    if (error <= 1e-12 * scale) return;
    ++found;
    std::printf("%s of [%lld, %lld, %lld]: off by %g of %g\n", name, static_cast<long long>(T),
                static_cast<long long>(N), static_cast<long long>(H), error, scale);
  };
  compare("membrane", one.membrane, eight.membrane);
  compare("last", one.last, eight.last);
  compare("grad_u", one.grad_u, eight.grad_u);
  compare("grad_initial_membrane", one.grad_initial_membrane, eight.grad_initial_membrane);
  compare("sum_bias", one.sum_bias, eight.sum_bias);
  compare("sum_decay", one.sum_decay, eight.sum_decay);
  compare("sum_threshold", one.sum_threshold, eight.sum_threshold);
  compare("sum_gain", one.sum_gain, eight.sum_gain);
  if (cpu::Segments::of<double>(T, N * H, 8).count == 1) {
    ++found;
    std::printf("[%lld, %lld, %lld]: time was not cut\n", static_cast<long long>(T), static_cast<long long>(N),
                static_cast<long long>(H));
  }
  return found;
}

// A row's factors, drawn in lanes, are those of the generator's plain form, also where a counter's upper word changes.
template <typename Real>
int differences_of_factors() {
  const auto row = std::make_unique<cpu::DropoutRow<Real>>();
  const std::int64_t seed = -0x0123'4567'89AB'CDEF, carry = std::int64_t{4} << 32;
  int found = 0;
  for (const std::int64_t first : {std::int64_t{0}, carry - 10, 3 * carry - 163}) {
    const Dropout dropout = {&seed, 1 << (Dropout::resolution - 2), 4.0 / 3.0, first};
    for (std::int64_t width = 1; width <= cpu::kTileWidth<Real>; width += 5) {
      const Real* const factors = row->factors(dropout, width, width);
      for (std::int64_t c = 0; c < width; ++c) {
        const std::int64_t element = first + width + c;
        const bool keeps = kept(dropout, philox(seed, element / 4).word[element % 4]);
        if (factors[c] == (keeps ? static_cast<Real>(4.0 / 3.0) : Real(0))) continue;
        ++found;
        std::printf("another factor of element %lld in a row of %lld\n", static_cast<long long>(element),
                    static_cast<long long>(width));
      }
    }
  }
  return found;
}

}  // namespace

int main() {
  int found = differences_of_factors<float>() + differences_of_factors<double>();
  // Long, short and ragged; the second spans batch rows within a tile, the last has fewer channels than a thread's share.
  for (const auto& [T, N, H] : {std::array<std::int64_t, 3>{3000, 3, 70}, {2500, 40, 7}, {9000, 1, 33}}) {
    found += differences<float>("float32", T, N, H) + differences<float>("float32", T, N, H, true);
    found += differences<double>("float64", T, N, H) + differences<double>("float64", T, N, H, true);
    found += differences<float16>("float16", T, N, H);
    found += differences<bfloat16>("bfloat16", T, N, H);
    found += differences<bfloat16, bfloat16>("bfloat16 of bfloat16 products", T, N, H);
  }
  // Those with an exponential.
  for (const Surrogate surrogate :
       {Surrogate{SurrogateKind::sigmoid, 25.0, 0.0}, Surrogate{SurrogateKind::spike_rate_escape, 1.0, 25.0}}) {
    found += differences<float>("float32", 400, 3, 70, false, surrogate);
    found += differences<double>("float64", 400, 3, 70, false, surrogate);
  }
  // Undriven, most membranes are clipped to zero now and then and forget; driven, few are.
  for (const double drive : {0.0, 1.5}) {
    found += differences_of_segments(6000, 1, 13, drive, true);
    found += differences_of_segments(8192, 1, 16, drive) + differences_of_segments(5000, 2, 7, drive);
  }
  run<float, float>(8192, 1, 16, 8);  // for the sanitizer
  run<float16, float>(8192, 3, 5, 8);
  std::printf("%016llx\n", static_cast<unsigned long long>(checksum));
  return found > 0;
}
