// The CPU's scans alone, on one thread, for counting instructions and for timing: no torch, no product.
//
//   scan_loops forward|backward[+dropout|+bounds|+sigmoid|+escape] float32|bfloat16|float64 T M REPEATS
//
// prints the time of the fastest repetition in nanoseconds an element.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../csrc/kernels.h"

namespace {

using namespace leakypar;

const cpu::Threads one_thread = {
    1, [](std::int64_t count, std::int64_t, const std::function<void(std::int64_t, std::int64_t)>& body) {
      body(0, count);
    }};

template <typename Scalar>
double nanoseconds(const std::string& scan, std::int64_t T, std::int64_t M, int repeats) {
  const bool forward = scan.starts_with("forward"), drops = scan.ends_with("+dropout");
  const Bounds bounds = scan.ends_with("+bounds") ? Bounds{-0.45, 0.9} : Bounds{};
  const Surrogate surrogate = scan.ends_with("+sigmoid")  ? Surrogate{SurrogateKind::sigmoid, 25.0, 0.0}
                              : scan.ends_with("+escape") ? Surrogate{SurrogateKind::spike_rate_escape, 1.0, 25.0}
                                                          : Surrogate{SurrogateKind::atan, 2.0, 0.0};
  using Real = State<Scalar>;
  std::vector<Real> u(T * M), per_neuron(M, Real(0.5)), sum(M);
  std::vector<Scalar> spikes(T * M), membrane(T * M);
  // A membrane that crosses the threshold now and then, and falls to zero too.
  std::uint32_t bits = 1;
  for (Real& value : u) {
    bits = bits * 1664525u + 1013904223u;
    value = static_cast<Real>(static_cast<std::int32_t>(bits)) / Real(1u << 31);
  }
  constexpr DType dtype = sizeof(Real) == sizeof(double) ? DType::float64 : DType::float32;
  const Parameter parameter = {per_neuron.data(), dtype, 1};

  ScanForward<Scalar, Real> ahead = {};
  ahead.T = T;
  ahead.N = 1;
  ahead.H = M;
  ahead.u = u.data();
  ahead.neurons.bias_ih = ahead.neurons.bias_hh = ahead.neurons.decay = ahead.neurons.threshold = ahead.neurons.gain =
      parameter;
  ahead.outputs.spikes = spikes.data();
  ahead.outputs.membrane = membrane.data();
  ahead.neurons.bounds = bounds;
  const std::int64_t seed = 7;
  if (drops) ahead.dropout = {&seed, 1 << (Dropout::resolution - 2), 4.0 / 3.0, 0};
  cpu::scan_forward(ahead, one_thread);

  ScanBackward<Scalar, Real> back = {};
  back.T = T;
  back.N = 1;
  back.H = M;
  back.grad_spikes = spikes.data();
  back.membrane = membrane.data();
  back.neurons.decay = back.neurons.threshold = back.neurons.gain = parameter;
  back.neurons.bounds = bounds;
  back.surrogate = surrogate;
  back.dropout = ahead.dropout;
  back.grad_u = u.data();
  back.sum_bias = sum.data();

  double fastest = 1e300;
  for (int i = 0; i < repeats; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    if (forward) {
      cpu::scan_forward(ahead, one_thread);
    } else {
      cpu::scan_backward(back, one_thread);
    }
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - begin;
    fastest = std::min(fastest, took.count());
  }
  return fastest / static_cast<double>(T * M);
}

}  // namespace

int main(int count, char** words) {
  if (count != 6) {
    std::fprintf(stderr,
                 "usage: %s forward|backward[+dropout|+bounds|+sigmoid|+escape] float32|bfloat16|float64 T M REPEATS\n",
                 words[0]);
    return 2;
  }
  const std::string scan = words[1];
  const std::string dtype = words[2];
  const std::int64_t T = std::atoll(words[3]), M = std::atoll(words[4]);
  const int repeats = std::atoi(words[5]);
  const double result = dtype == "float32"    ? nanoseconds<float>(scan, T, M, repeats)
                        : dtype == "bfloat16" ? nanoseconds<leakypar::bfloat16>(scan, T, M, repeats)
                                              : nanoseconds<double>(scan, T, M, repeats);
  std::printf("%.4f\n", result);
}
