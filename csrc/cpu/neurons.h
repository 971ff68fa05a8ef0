// The parameters of the neurons, as the scans read them: one array each, in the state type, that repeats with period H.
//
// Channel c is neuron c mod H, so the values of a tile's channels are neighbours wherever the tile begins, also where it
// spans many short batch rows. Each is laid out once a scan.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "../kernels.h"
#include "element.h"

namespace leakypar::cpu {

template <typename Real>
class Repeated {
 public:
  // The first `count` values of the parameter's repetition; zeros where it is absent.
  Repeated(const Parameter& parameter, std::int64_t H, std::int64_t count)
      : values_(std::make_unique<Real[]>(count)), H_(H), count_(count) {
    add(parameter);
  }

  void add(const Parameter& parameter) {
    if (parameter.data == nullptr) return;
    switch (parameter.dtype) {
      case DType::float32:
        return add(static_cast<const float*>(parameter.data), parameter.stride);
      case DType::float64:
        return add(static_cast<const double*>(parameter.data), parameter.stride);
      case DType::float16:
        return add(static_cast<const float16*>(parameter.data), parameter.stride);
      case DType::bfloat16:
        return add(static_cast<const bfloat16*>(parameter.data), parameter.stride);
    }
  }

  // The values of the channels from this one on.
  const Real* from(std::int64_t channel) const { return values_.get() + channel % H_; }

 private:
  template <typename Element>
  void add(const Element* data, std::int64_t stride) {
    for (std::int64_t first = 0; first < count_; first += H_) {
      Real* const period = values_.get() + first;
      const std::int64_t neurons = std::min(H_, count_ - first);
      for (std::int64_t i = 0; i < neurons; ++i) period[i] += static_cast<Real>(to_state(data[i * stride]));
    }
  }

  std::unique_ptr<Real[]> values_;  // [count]
  std::int64_t H_, count_;
};

// The neurons of a layer, each parameter repeated.
template <typename Real>
struct RepeatedNeurons {
  Repeated<Real> decay, bias, threshold, gain;
  Bounds bounds;

  RepeatedNeurons(const Neurons& neurons, std::int64_t H, std::int64_t count)
      : decay(neurons.decay, H, count),
        bias(neurons.bias_ih, H, count),
        threshold(neurons.threshold, H, count),
        gain(neurons.gain, H, count),
        bounds(neurons.bounds) {
    bias.add(neurons.bias_hh);
  }
};

}  // namespace leakypar::cpu
