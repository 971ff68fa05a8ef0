// h_t = clamp(w h_{t-1} + u_t + b, lower, upper),  S_t = gain * 1[f_t h_t - threshold > 0], for every channel, in time order;
// f_t is 1, or the factor of dropout (math/dropout.h).
//
// A tile reads each u once and writes each output once: T * M * (1 + outputs) elements move, and the rest stays in
// cache. The state of a tile between two rows is its carry. Where time is cut (segments.h), u is read twice.
#include <algorithm>
#include <vector>

#include "../math/clamp_affine.h"
#include "dropout.h"
#include "neurons.h"
#include "segments.h"
#include "tile.h"
#include "vectors.h"

namespace leakypar::cpu {
namespace {

// What a tile reads at every row, and its carry h.
template <typename Scalar>
struct ForwardTile {
  using Real = State<Scalar>;

  const Real *decay, *bias, *threshold;
  Clamp<Real> clip;
  Columns<Scalar> gain;  // what a spike is worth, as the element that is written
  Columns<Real> h;

  template <typename Projected>
  ForwardTile(const ScanForward<Scalar, Projected>& args, const RepeatedNeurons<Real>& neurons, Span span)
      : decay(neurons.decay.from(span.first)),
        bias(neurons.bias.from(span.first)),
        threshold(neurons.threshold.from(span.first)),
        clip(Clamp<Real>::of(neurons.bounds)) {
    const Real* values = neurons.gain.from(span.first);
    for (std::int64_t c = 0; c < span.width; ++c) gain[c] = to_element<Scalar>(values[c]);
    load_state(args.initial_membrane, span, h);
  }
};

// One time step of a tile; the flags say which outputs exist, and the threshold sees the membrane through the factors. The
// iterations are independent although u may be the row that an output is written to: an element is read before it is
// overwritten, and no other iteration touches it.
template <bool kSpikes, bool kMembrane, typename Scalar, typename Projected, typename Factors>
LEAKYPAR_ALWAYS_INLINE inline void forward_row(ForwardTile<Scalar>& tile, std::int64_t width, const Projected* u,
                                               Scalar* spikes, Scalar* membrane, Factors factors) {
  using Real = State<Scalar>;
  const Real *decay = tile.decay, *bias = tile.bias, *threshold = tile.threshold;
  const Clamp<Real> clip = tile.clip;
  LEAKYPAR_INDEPENDENT
  for (std::int64_t c = 0; c < width; ++c) {
    const Real h = membrane_step(decay[c], tile.h[c], to_state(u[c]) + bias[c], clip);
    tile.h[c] = h;
    if constexpr (kSpikes) spikes[c] = keep_if(spike(factors[c] * h - threshold[c]), tile.gain[c]);
    if constexpr (kMembrane) membrane[c] = to_element<Scalar>(h);
  }
}

template <typename Scalar, typename Projected>
void forward_rows(const ScanForward<Scalar, Projected>& args, Span span, ForwardTile<Scalar>& tile) {
  const std::int64_t M = args.N * args.H;
  DropoutRow<State<Scalar>> dropout;
  dispatch_vectors([&]() LEAKYPAR_ALWAYS_INLINE {
    dispatch_flag(args.outputs.spikes != nullptr, [&](auto has_spikes) LEAKYPAR_ALWAYS_INLINE {
      dispatch_flag(args.outputs.membrane != nullptr, [&](auto has_membrane) LEAKYPAR_ALWAYS_INLINE {
        for (std::int64_t t = 0; t < args.T; ++t) {
          const std::int64_t row = t * M + span.first;
          const auto forward = [&](auto factors) LEAKYPAR_ALWAYS_INLINE {
            forward_row<has_spikes(), has_membrane()>(tile, span.width, args.u + row,
                                                      has_spikes() ? args.outputs.spikes + row : nullptr,
                                                      has_membrane() ? args.outputs.membrane + row : nullptr, factors);
          };
          if (has_spikes() && args.dropout.seed != nullptr) {
            forward(dropout.factors(args.dropout, row, span.width));
          } else {
            forward(Ones());
          }
        }
      });
    });
  });
}

template <typename Scalar, typename Projected>
void scan_tile(const ScanForward<Scalar, Projected>& args, const RepeatedNeurons<State<Scalar>>& neurons, Span span) {
  ForwardTile<Scalar> tile(args, neurons, span);
  forward_rows(args, span, tile);
  store_state(tile.h, span, args.outputs.final_membrane);
}

// A tile whose sequences have lengths of their own: a tile for each, and then what lies beyond its steps.
template <typename Scalar, typename Projected>
void scan_sequences(const ScanForward<Scalar, Projected>& args, const RepeatedNeurons<State<Scalar>>& neurons,
                    Span span) {
  for_each_sequence(span, args.H, [&](Span part, std::int64_t n) {
    ScanForward<Scalar, Projected> own = args;
    own.T = args.lengths.steps(n, args.T);
    scan_tile(own, neurons, part);
    const std::int64_t M = args.N * args.H;
    Columns<State<Scalar>> initial;
    if (own.T == 0) load_state(args.initial_membrane, part, initial);
    for (std::int64_t t = own.T; t < args.T; ++t) {
      Scalar* const spikes = args.outputs.spikes + t * M + part.first;
      Scalar* const membrane = args.outputs.membrane + t * M + part.first;
      if (args.outputs.spikes != nullptr) std::fill_n(spikes, part.width, Scalar{});
      if (args.outputs.membrane == nullptr) continue;
      for (std::int64_t c = 0; c < part.width; ++c) {
        membrane[c] = t > 0 ? membrane[c - M] : to_element<Scalar>(initial[c]);
      }
    }
  });
}

// The steps [first, first + count) of a problem.
template <typename Scalar, typename Projected>
ScanForward<Scalar, Projected> part(ScanForward<Scalar, Projected> args, std::int64_t first, std::int64_t count) {
  const std::int64_t offset = first * args.N * args.H;
  args.T = count;
  args.u += offset;
  if (args.outputs.spikes != nullptr) args.outputs.spikes += offset;
  if (args.outputs.membrane != nullptr) args.outputs.membrane += offset;
  args.dropout.first += offset;
  return args;
}

// Sets maps [M] to the map of all the steps, channel by channel; of a channel whose decay grows, to nothing of use.
template <typename Scalar, typename Projected, typename Real>
void compose_steps(const ScanForward<Scalar, Projected>& args, const RepeatedNeurons<Real>& neurons,
                   ClampAffine<Real>* maps) {
  const Span all = {0, args.N * args.H};
  const Real *decay = neurons.decay.from(0), *bias = neurons.bias.from(0);
  const auto clip = Clamp<Real>::of(neurons.bounds);
  Columns<Real> offset, below, above;
  for (std::int64_t c = 0; c < all.width; ++c) {
    const auto map = ClampAffine<Real>::first(decay[c], to_state(args.u[c]) + bias[c], clip);
    offset[c] = map.offset;
    below[c] = map.below;
    above[c] = map.above;
  }
  dispatch_vectors([&]() LEAKYPAR_ALWAYS_INLINE {
    for (std::int64_t t = 1; t < args.T; ++t) {
      const Projected* u = args.u + t * all.width;
      LEAKYPAR_INDEPENDENT
      for (std::int64_t c = 0; c < all.width; ++c) {
        ClampAffine<Real> map = {offset[c], below[c], above[c]};
        map.then(decay[c], to_state(u[c]) + bias[c], clip);
        offset[c] = map.offset;
        below[c] = map.below;
        above[c] = map.above;
      }
    }
  });
  for (std::int64_t c = 0; c < all.width; ++c) maps[c] = {offset[c], below[c], above[c]};
}

// Sets the carries [segments - 1, M] of the channels whose decay grows, step by step (segments.h says why).
template <typename Scalar, typename Projected, typename Real>
void walk_growing(const ScanForward<Scalar, Projected>& args, const RepeatedNeurons<Real>& neurons,
                  const Segments& segments, Span span, Real* carries) {
  const std::int64_t M = args.N * args.H;
  ForwardTile<Scalar> tile(args, neurons, span);
  for (std::int64_t s = 0; s + 1 < segments.count; ++s) {
    dispatch_vectors([&]() LEAKYPAR_ALWAYS_INLINE {
      for (std::int64_t t = segments.first(s); t < segments.first(s + 1); ++t) {
        forward_row<false, false, Scalar, Projected>(tile, span.width, args.u + t * M + span.first, nullptr, nullptr,
                                                     Ones());
      }
    });
    for (std::int64_t c = 0; c < span.width; ++c) {
      if (grows(tile.decay[c])) carries[s * M + span.first + c] = tile.h[c];
    }
  }
}

template <typename Scalar, typename Projected, typename Real>
void scan_segments(const ScanForward<Scalar, Projected>& args, const RepeatedNeurons<Real>& neurons,
                   const Segments& segments, const Threads& threads) {
  const std::int64_t M = args.N * args.H, last = segments.count - 1;
  std::vector<ClampAffine<Real>> maps(last * M);
  const auto segment = [&](std::int64_t s) { return part(args, segments.first(s), segments.steps(s, args.T)); };
  threads.parallel_for(last, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t s = begin; s < end; ++s) compose_steps(segment(s), neurons, &maps[s * M]);
  });

  std::vector<Real> carries(last * M);  // [segment - 1, M]: the membrane before each segment but the first
  for (std::int64_t c = 0; c < M; ++c) {
    Real h = args.initial_membrane != nullptr ? args.initial_membrane[c] : Real(0);
    const auto power = Power<Real>::of(neurons.decay.from(0)[c], segments.length);
    for (std::int64_t s = 0; s < last; ++s) carries[s * M + c] = h = maps[s * M + c](h, power);
  }
  for_each_growing(neurons.decay.from(0), M, threads,
                   [&](Span span) { walk_growing(args, neurons, segments, span, carries.data()); });

  threads.parallel_for(segments.count, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t s = begin; s < end; ++s) {
      ScanForward<Scalar, Projected> steps = segment(s);
      if (s > 0) steps.initial_membrane = &carries[(s - 1) * M];
      if (s < last) steps.outputs.final_membrane = nullptr;
      scan_tile(steps, neurons, {0, M});
    }
  });
}

}  // namespace

template <typename Scalar, typename Projected>
void scan_forward(const ScanForward<Scalar, Projected>& args, const Threads& threads) {
  using Real = State<Scalar>;
  const std::int64_t M = args.N * args.H;
  if (M == 0) return;
  const RepeatedNeurons<Real> neurons(args.neurons, args.H, repetition<Real>(args.H, M));
  if (args.lengths.length != nullptr) {
    return for_each_tile<Real>(args.T, M, 1 << 18, threads, [&](Span span) { scan_sequences(args, neurons, span); });
  }
  const auto segments = Segments::of<Real>(args.T, M, threads.count);
  if (segments.count > 1) return scan_segments(args, neurons, segments, threads);
  for_each_tile<Real>(args.T, M, 1 << 18, threads, [&](Span span) { scan_tile(args, neurons, span); });
}

template void scan_forward(const ScanForward<float, float>&, const Threads&);
template void scan_forward(const ScanForward<double, double>&, const Threads&);
template void scan_forward(const ScanForward<float16, float>&, const Threads&);
template void scan_forward(const ScanForward<bfloat16, float>&, const Threads&);
template void scan_forward(const ScanForward<bfloat16, bfloat16>&, const Threads&);

}  // namespace leakypar::cpu
