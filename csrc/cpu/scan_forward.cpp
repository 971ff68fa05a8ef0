// h_t = relu(w h_{t-1} + u_t + b),  S_t = gain * 1[h_t - threshold > 0], for every channel, in time order.
//
// A tile reads each u once and writes each output once: T * M * (1 + outputs) elements move, and the rest stays in
// cache. The state of a tile between two rows is its carry.
#include "../math/clamp_affine.h"
#include "neurons.h"
#include "tile.h"
#include "vectors.h"

namespace leakypar::cpu {
namespace {

template <typename Scalar>
using Forward = ScanForward<Scalar, State<Scalar>>;

template <typename Real>
struct Neurons {
  Repeated<Real> decay, bias, threshold, gain;

  template <typename Scalar>
  explicit Neurons(const Forward<Scalar>& args, std::int64_t count)
      : decay(args.decay, args.H, count),
        bias(args.bias_ih, args.H, count),
        threshold(args.threshold, args.H, count),
        gain(args.gain, args.H, count) {
    bias.add(args.bias_hh);
  }
};

// What a tile reads at every row, and its carry h.
template <typename Scalar>
struct ForwardTile {
  using Real = State<Scalar>;

  const Real *decay, *bias, *threshold;
  Columns<Scalar> gain;  // what a spike is worth, as the element that is written
  Columns<Real> h;

  ForwardTile(const Forward<Scalar>& args, const Neurons<Real>& neurons, Span span)
      : decay(neurons.decay.from(span.first)),
        bias(neurons.bias.from(span.first)),
        threshold(neurons.threshold.from(span.first)) {
    const Real* values = neurons.gain.from(span.first);
    for (std::int64_t c = 0; c < span.width; ++c) gain[c] = to_element<Scalar>(values[c]);
    load_state(args.initial, span, h);
  }
};

// One time step of a tile; the flags say which outputs exist. The pragma is true although u may be the row that an output
// is written to: an element is read before it is overwritten, and no other iteration touches it.
template <bool kSpikes, bool kMembrane, typename Scalar, typename Real>
LEAKYPAR_ALWAYS_INLINE inline void forward_row(ForwardTile<Scalar>& tile, std::int64_t width, const Real* u,
                                               Scalar* spikes, Scalar* membrane) {
  const Real *decay = tile.decay, *bias = tile.bias, *threshold = tile.threshold;
#pragma GCC ivdep
  for (std::int64_t c = 0; c < width; ++c) {
    const Real h = membrane_step(decay[c], tile.h[c], u[c] + bias[c]);
    tile.h[c] = h;
    if constexpr (kSpikes) spikes[c] = keep_if(spike(h - threshold[c]), tile.gain[c]);
    if constexpr (kMembrane) membrane[c] = to_element<Scalar>(h);
  }
}

template <typename Scalar>
void forward_rows(const Forward<Scalar>& args, Span span, ForwardTile<Scalar>& tile) {
  const std::int64_t M = args.N * args.H;
  with_widest_vectors([&]() LEAKYPAR_ALWAYS_INLINE {
    with_flag(args.spikes != nullptr, [&](auto has_spikes) LEAKYPAR_ALWAYS_INLINE {
      with_flag(args.membrane != nullptr, [&](auto has_membrane) LEAKYPAR_ALWAYS_INLINE {
        for (std::int64_t t = 0; t < args.T; ++t) {
          const std::int64_t row = t * M + span.first;
          forward_row<has_spikes(), has_membrane()>(tile, span.width, args.u + row,
                                                    has_spikes() ? args.spikes + row : nullptr,
                                                    has_membrane() ? args.membrane + row : nullptr);
        }
      });
    });
  });
}

}  // namespace

template <typename Scalar>
void scan_forward(const Forward<Scalar>& args, const ParallelFor& parallel_for) {
  using Real = State<Scalar>;
  const std::int64_t M = args.N * args.H;
  if (M == 0) return;
  const Neurons<Real> neurons(args, repetition<Real>(args.H, M));
  for_each_tile<Real>(args.T, M, 1 << 18, parallel_for, [&](Span span) {
    ForwardTile<Scalar> tile(args, neurons, span);
    forward_rows(args, span, tile);
    store_state(tile.h, span, args.last);
  });
}

template void scan_forward<float>(const Forward<float>&, const ParallelFor&);
template void scan_forward<double>(const Forward<double>&, const ParallelFor&);
template void scan_forward<float16>(const Forward<float16>&, const ParallelFor&);
template void scan_forward<bfloat16>(const Forward<bfloat16>&, const ParallelFor&);

}  // namespace leakypar::cpu
