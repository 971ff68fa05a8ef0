// With v = f_t h_t - threshold, f_t = 1 or the factor of dropout (math/dropout.h), and r the gradient that reaches h_t from
// later steps, for every channel, last step first:
//
//   g_t = f_t dL/dS_t gain surrogate'(v) + dL/dh_t      d_u[t] = 1[lower < h_t < upper] (g_t + r_t)      r_{t-1} = w d_u[t]
//
// A tile reads dL/dS (and dL/dh, if there is one) and the membrane once, and writes d_u once: T * M * 3 (or 4) elements
// move. The sums of the parameter gradients stay in cache beside the carry, one of each per channel.
//
// The indicator is 0 at a bound and 1 at NaN, as PyTorch has it: what depends on a NaN gets a NaN for a gradient.
#include <algorithm>
#include <array>
#include <type_traits>
#include <vector>

#include "../math/clamp_affine.h"
#include "../math/surrogate.h"
#include "dropout.h"
#include "neurons.h"
#include "segments.h"
#include "tile.h"
#include "vectors.h"

namespace leakypar::cpu {
namespace {

// What a tile reads at every row, its carry r, and its sums.
template <typename Scalar>
struct BackwardTile {
  using Real = State<Scalar>;

  const Real *decay, *threshold, *gain;
  Clamp<Real> clip;
  Columns<Real> r;
  Columns<Real> d_u_next;  // d_u[t + 1], the factor of h_t in sum_decay
  Columns<Real> sum_bias, sum_decay, sum_threshold, sum_gain;
  struct alignas(64) Totals {
    double values[kTileWidth<Real>];
  };
  std::array<Totals, 4> totals;    // of these sums, in their order
  std::array<Real*, 4> sums_into;  // [M] each; null where nobody wants the sum
  Columns<Real> h, g, seen;        // of one row
  DropoutRow<Real> dropout;

  template <typename Projected>
  BackwardTile(const ScanBackward<Scalar, Projected>& args, const RepeatedNeurons<Real>& neurons, Span span)
      : decay(neurons.decay.from(span.first)),
        threshold(neurons.threshold.from(span.first)),
        gain(neurons.gain.from(span.first)),
        clip(Clamp<Real>::template rounded<Scalar>(neurons.bounds)),
        sums_into{args.sum_bias, args.sum_decay, args.sum_threshold, args.sum_gain} {
    load_state(args.grad_final_membrane, span, r);
    for (auto* sum : sums()) fill_zeros(span, *sum);
    for (Totals& total : totals) std::fill_n(total.values, span.width, 0.0);
    fill_zeros(span, d_u_next);
    fill_zeros(span, g);
  }

  std::array<Columns<Real>*, 4> sums() { return {&sum_bias, &sum_decay, &sum_threshold, &sum_gain}; }
};

// Runs body(std::integral_constant<SurrogateKind, kind>), so that no loop has the branch inside.
template <typename Body>
LEAKYPAR_ALWAYS_INLINE inline void dispatch_surrogate(SurrogateKind kind, const Body& body) {
  using enum SurrogateKind;
  switch (kind) {
    case disabled:
      return body(std::integral_constant<SurrogateKind, disabled>());
    case atan:
      return body(std::integral_constant<SurrogateKind, atan>());
    case fast_sigmoid:
      return body(std::integral_constant<SurrogateKind, fast_sigmoid>());
    case sigmoid:
      return body(std::integral_constant<SurrogateKind, sigmoid>());
    case straight_through_estimator:
      return body(std::integral_constant<SurrogateKind, straight_through_estimator>());
    case triangular:
      return body(std::integral_constant<SurrogateKind, triangular>());
    case heaviside:
      return body(std::integral_constant<SurrogateKind, heaviside>());
    case spike_rate_escape:
      return body(std::integral_constant<SurrogateKind, spike_rate_escape>());
    case leaky_spike_operator:
      return body(std::integral_constant<SurrogateKind, leaky_spike_operator>());
    case sparse_fast_sigmoid:
      return body(std::integral_constant<SurrogateKind, sparse_fast_sigmoid>());
  }
}

// Runs body with the bounds (0, inf) where they are those: one comparison an element rather than two.
template <typename Real, typename Body>
LEAKYPAR_ALWAYS_INLINE inline void dispatch_clip(bool rectify, const Clamp<Real>& clip, const Body& body) {
  if (rectify) {
    body(Rectify<Real>());
  } else {
    body(clip);
  }
}

// The membrane of one row as the backward reads it: itself, where elements are state already.
template <typename Scalar, typename Real>
LEAKYPAR_ALWAYS_INLINE inline const Real* membrane_row(const Scalar* __restrict membrane, std::int64_t width,
                                                       Columns<Real>& h) {
  if constexpr (std::is_same_v<Scalar, Real>) {
    return membrane;
  } else {
    for (std::int64_t c = 0; c < width; ++c) h[c] = membrane_in_range<Scalar>(to_state(membrane[c]));
    return h.values;
  }
}

// g = dL/dS gain surrogate'(v)
template <typename Scalar, typename Real>
LEAKYPAR_ALWAYS_INLINE inline void spike_gradient_row(const Surrogate& surrogate, BackwardTile<Scalar>& tile,
                                                      std::int64_t width, const Real* __restrict h,
                                                      const Scalar* __restrict grad_spikes) {
  const Real* __restrict threshold = tile.threshold, * __restrict gain = tile.gain;
  dispatch_surrogate(surrogate.kind, [&](auto kind) LEAKYPAR_ALWAYS_INLINE {
    const Surrogate known{kind(), surrogate.p0, surrogate.p1};
    for (std::int64_t c = 0; c < width; ++c) {
      const Real slope = surrogate_derivative(known, h[c] - threshold[c]);
      // Disabled, a spike is a constant: not even NaN gets through.
      tile.g[c] = kind() == SurrogateKind::disabled ? Real(0) : to_state(grad_spikes[c]) * gain[c] * slope;
    }
  });
}

template <typename Scalar, typename Real>
LEAKYPAR_ALWAYS_INLINE inline void spike_sums_row(BackwardTile<Scalar>& tile, std::int64_t width,
                                                  const Real* __restrict h, const Scalar* __restrict grad_spikes) {
  for (std::int64_t c = 0; c < width; ++c) {
    tile.sum_threshold[c] -= tile.g[c];
    // Not keep_if of the gradient: NaN times the 0 of a silent neuron is NaN, as it is to autograd.
    tile.sum_gain[c] += keep_if(spike(h[c] - tile.threshold[c]), Real(1)) * to_state(grad_spikes[c]);
  }
}

// g += dL/dh
template <typename Scalar>
LEAKYPAR_ALWAYS_INLINE inline void membrane_gradient_row(BackwardTile<Scalar>& tile, std::int64_t width,
                                                         const Scalar* __restrict grad_membrane) {
  for (std::int64_t c = 0; c < width; ++c) tile.g[c] += to_state(grad_membrane[c]);
}

// d_u = 1[lower < h < upper] (g + r), r = w d_u. kLast: the last row, whose membrane no later one comes from. The iterations
// are independent although grad_u may be the row that the membrane is read from.
template <bool kSums, bool kLast, typename Scalar, typename Projected, typename Real, typename Clip>
LEAKYPAR_ALWAYS_INLINE inline void recurrence_row(BackwardTile<Scalar>& tile, std::int64_t width, const Real* membrane,
                                                  Projected* grad_u, const Clip& clip) {
  const Real* decay = tile.decay;
  LEAKYPAR_INDEPENDENT
  for (std::int64_t c = 0; c < width; ++c) {
    const Real h = membrane[c];
    const Real d_u = keep_if(clip.passes(h), tile.g[c] + tile.r[c]);
    grad_u[c] = to_element<Projected>(d_u);
    tile.r[c] = decay[c] * d_u;
    if constexpr (kSums) {
      tile.sum_bias[c] += d_u;
      if constexpr (!kLast) tile.sum_decay[c] += tile.d_u_next[c] * h;
      tile.d_u_next[c] = d_u;
    }
  }
}

// product = factors * values, which may be one array.
template <typename Real>
LEAKYPAR_ALWAYS_INLINE inline const Real* product_row(const Real* __restrict factors, const Real* values, Span span,
                                                      Columns<Real>& product) {
  for (std::int64_t c = 0; c < span.width; ++c) product[c] = factors[c] * values[c];
  return product.values;
}

// g of one row. Returns the row's membrane as state.
template <typename Scalar, typename Projected>
LEAKYPAR_ALWAYS_INLINE inline const State<Scalar>* gradient_row(const ScanBackward<Scalar, Projected>& args, Span span,
                                                                std::int64_t t, bool has_spike_sums,
                                                                BackwardTile<Scalar>& tile) {
  const std::int64_t row = t * args.N * args.H + span.first;
  const auto* h = membrane_row(args.membrane + row, span.width, tile.h);
  if (args.grad_spikes != nullptr) {
    const bool drops = args.dropout.seed != nullptr;
    const auto* factors = drops ? tile.dropout.factors(args.dropout, row, span.width) : nullptr;
    const auto* seen = drops ? product_row(factors, h, span, tile.seen) : h;
    spike_gradient_row(args.surrogate, tile, span.width, seen, args.grad_spikes + row);
    if (has_spike_sums) spike_sums_row(tile, span.width, seen, args.grad_spikes + row);
    if (drops) product_row(factors, tile.g.values, span, tile.g);
  } else if (args.grad_membrane != nullptr) {
    fill_zeros(span, tile.g);
  }
  if (args.grad_membrane != nullptr) membrane_gradient_row(tile, span.width, args.grad_membrane + row);
  return h;
}

// Steps that are summed before their sum is added to the total, in float64: a running sum in float32 rounds at every step,
// and over a long sequence that shows.
constexpr std::int64_t summed_steps = 16;

template <typename Scalar>
void add_sums_to_totals(Span span, BackwardTile<Scalar>& tile) {
  for (std::size_t i = 0; i < tile.sums_into.size(); ++i) {
    if (tile.sums_into[i] == nullptr) continue;
    Columns<State<Scalar>>& sum = *tile.sums()[i];
    for (std::int64_t c = 0; c < span.width; ++c) tile.totals[i].values[c] += sum[c];
    fill_zeros(span, sum);
  }
}

// A kept membrane and the gradient of the spikes come from memory. A processor sees wide rows coming, but not short ones, nor
// those of 16-bit elements, which go by twice as fast.
constexpr std::int64_t prefetched_rows = 4, prefetched_bytes = 1024;  // rows ahead, and the widest that are

template <typename Scalar>
LEAKYPAR_ALWAYS_INLINE inline void prefetch_rows(const Scalar* membrane, const Scalar* grad_spikes,
                                                 std::int64_t width) {
  for (std::int64_t c = 0; c < width; c += 64 / sizeof(Scalar)) {
    __builtin_prefetch(membrane + c);
    __builtin_prefetch(grad_spikes + c);
  }
}

// Carries the tile from the last row to before the first.
template <typename Scalar, typename Projected>
void backward_rows(const ScanBackward<Scalar, Projected>& args, Span span, BackwardTile<Scalar>& tile) {
  const std::int64_t M = args.N * args.H;
  const bool has_sums = args.sum_bias != nullptr || args.sum_decay != nullptr;
  const bool has_spike_sums = args.sum_threshold != nullptr || args.sum_gain != nullptr;
  const bool rectify = args.neurons.bounds.rectify();
  const bool prefetches =
      args.grad_spikes != nullptr && span.width * static_cast<std::int64_t>(sizeof(Scalar)) <= prefetched_bytes;
  dispatch_vectors([&]() LEAKYPAR_ALWAYS_INLINE {
    for (std::int64_t t = args.T - 1; t >= 0; --t) {
      if (prefetches && t >= prefetched_rows) {
        const std::int64_t ahead = (t - prefetched_rows) * M + span.first;
        prefetch_rows(args.membrane + ahead, args.grad_spikes + ahead, span.width);
      }
      const auto* h = gradient_row(args, span, t, has_spike_sums, tile);
      dispatch_flag(has_sums, [&](auto sums) LEAKYPAR_ALWAYS_INLINE {
        dispatch_flag(t == args.T - 1, [&](auto last) LEAKYPAR_ALWAYS_INLINE {
          dispatch_clip(rectify, tile.clip, [&](const auto& clip) LEAKYPAR_ALWAYS_INLINE {
            recurrence_row<sums(), last()>(tile, span.width, h, args.grad_u + t * M + span.first, clip);
          });
        });
      });
      if (t % summed_steps == 0) add_sums_to_totals(span, tile);
    }
  });
}

// The last factor of sum_decay: d_u[0] meets the membrane before the first row.
template <typename Scalar, typename Projected>
void add_initial_to_sum_decay(const ScanBackward<Scalar, Projected>& args, Span span, BackwardTile<Scalar>& tile) {
  if (args.initial_membrane == nullptr || args.T == 0) return;
  for (std::int64_t c = 0; c < span.width; ++c) {
    tile.sum_decay[c] += tile.d_u_next[c] * membrane_in_range<Scalar>(args.initial_membrane[span.first + c]);
  }
}

template <typename Scalar, typename Projected>
void scan_tile(const ScanBackward<Scalar, Projected>& args, const RepeatedNeurons<State<Scalar>>& neurons, Span span) {
  BackwardTile<Scalar> tile(args, neurons, span);
  backward_rows(args, span, tile);
  add_initial_to_sum_decay(args, span, tile);
  add_sums_to_totals(span, tile);
  for (std::size_t i = 0; i < tile.sums_into.size(); ++i) {
    if (tile.sums_into[i] == nullptr) continue;
    for (std::int64_t c = 0; c < span.width; ++c) {
      tile.sums_into[i][span.first + c] += static_cast<State<Scalar>>(tile.totals[i].values[c]);
    }
  }
  store_state(tile.r, span, args.grad_initial_membrane);
}

// A tile whose sequences have lengths of their own: a tile for each, and no gradient from beyond its steps.
template <typename Scalar, typename Projected>
void scan_sequences(const ScanBackward<Scalar, Projected>& args, const RepeatedNeurons<State<Scalar>>& neurons,
                    Span span) {
  for_each_sequence(span, args.H, [&](Span part, std::int64_t n) {
    ScanBackward<Scalar, Projected> own = args;
    own.T = args.lengths.steps(n, args.T);
    scan_tile(own, neurons, part);
    for (std::int64_t t = own.T; t < args.T; ++t) {
      std::fill_n(args.grad_u + t * args.N * args.H + part.first, part.width, Projected{});
    }
  });
}

// The steps [first, first + count) of a problem.
template <typename Scalar, typename Projected>
ScanBackward<Scalar, Projected> part(ScanBackward<Scalar, Projected> args, std::int64_t first, std::int64_t count) {
  const std::int64_t offset = first * args.N * args.H;
  args.T = count;
  args.membrane += offset;
  args.grad_u += offset;
  if (args.grad_spikes != nullptr) args.grad_spikes += offset;
  if (args.grad_membrane != nullptr) args.grad_membrane += offset;
  args.dropout.first += offset;
  return args;
}

// Sets maps [M] to that of all the steps, last first: r before the first from r after the last.
template <typename Scalar, typename Projected, typename Real>
void compose_steps(const ScanBackward<Scalar, Projected>& args, const RepeatedNeurons<Real>& neurons,
                   Affine<Real>* maps) {
  const Span all = {0, args.N * args.H};
  BackwardTile<Scalar> tile(args, neurons, all);
  Columns<Real> passes, offset;
  std::fill_n(passes.values, all.width, Real(1));
  fill_zeros(all, offset);
  const Clamp<Real> clip = tile.clip;
  dispatch_vectors([&]() LEAKYPAR_ALWAYS_INLINE {
    for (std::int64_t t = args.T - 1; t >= 0; --t) {
      const Real* __restrict h = gradient_row(args, all, t, false, tile);
      const Real* __restrict decay = tile.decay;
      for (std::int64_t c = 0; c < all.width; ++c) {
        const bool active = clip.passes(h[c]);
        passes[c] = keep_if(active, passes[c]);
        offset[c] = keep_if(active, decay[c] * (tile.g[c] + offset[c]));
      }
    }
  });
  for (std::int64_t c = 0; c < all.width; ++c) maps[c] = {offset[c], passes[c]};
}

// Sets the carries [segments, M] of the channels whose decay grows, step by step (segments.h says why).
template <typename Scalar, typename Projected, typename Real>
void walk_growing(const ScanBackward<Scalar, Projected>& args, const RepeatedNeurons<Real>& neurons,
                  const Segments& segments, Span span, Real* carries) {
  const std::int64_t M = args.N * args.H;
  BackwardTile<Scalar> tile(args, neurons, span);
  const Clamp<Real> clip = tile.clip;
  for (std::int64_t s = segments.count - 1; s > 0; --s) {
    dispatch_vectors([&]() LEAKYPAR_ALWAYS_INLINE {
      for (std::int64_t t = segments.first(s) + segments.steps(s, args.T) - 1; t >= segments.first(s); --t) {
        const Real* __restrict h = gradient_row(args, span, t, false, tile);
        const Real* __restrict decay = tile.decay;
        for (std::int64_t c = 0; c < span.width; ++c) {
          tile.r[c] = decay[c] * keep_if(clip.passes(h[c]), tile.g[c] + tile.r[c]);
        }
      }
    });
    for (std::int64_t c = 0; c < span.width; ++c) {
      if (grows(tile.decay[c])) carries[(s - 1) * M + span.first + c] = tile.r[c];
    }
  }
}

template <typename Scalar, typename Projected, typename Real>
void scan_segments(const ScanBackward<Scalar, Projected>& args, const RepeatedNeurons<Real>& neurons,
                   const Segments& segments, const Threads& threads) {
  const std::int64_t M = args.N * args.H, last = segments.count - 1;
  std::vector<Affine<Real>> maps(segments.count * M);  // that of the first segment is not used
  const auto segment = [&](std::int64_t s) { return part(args, segments.first(s), segments.steps(s, args.T)); };
  threads.parallel_for(last, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t s = begin + 1; s < end + 1; ++s) compose_steps(segment(s), neurons, &maps[s * M]);
  });

  std::vector<Real> carries(segments.count * M);  // r from after each segment
  std::vector<Real> before(segments.count * M);   // the membrane before each segment
  for (std::int64_t c = 0; c < M; ++c) {
    Real r = args.grad_final_membrane != nullptr ? args.grad_final_membrane[c] : Real(0);
    for (std::int64_t s = last; s >= 0; --s) {
      carries[s * M + c] = r;
      r = maps[s * M + c](r, Power<Real>::of(neurons.decay.from(0)[c], segments.steps(s, args.T)));
      if (s > 0) before[s * M + c] = to_state(args.membrane[(segments.first(s) - 1) * M + c]);
    }
  }

  for_each_growing(neurons.decay.from(0), M, threads,
                   [&](Span span) { walk_growing(args, neurons, segments, span, carries.data()); });

  // Each segment's sums apart, and added up in the order of time afterwards.
  std::array<Real*, 4> targets = {args.sum_bias, args.sum_decay, args.sum_threshold, args.sum_gain};
  std::vector<Real> sums(segments.count * targets.size() * M);
  threads.parallel_for(segments.count, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t s = begin; s < end; ++s) {
      ScanBackward<Scalar, Projected> steps = segment(s);
      const auto sum = [&](std::size_t i) {
        return targets[i] != nullptr ? &sums[(s * targets.size() + i) * M] : nullptr;
      };
      steps.grad_final_membrane = &carries[s * M];
      if (s > 0) steps.grad_initial_membrane = nullptr;
      if (s > 0) steps.initial_membrane = &before[s * M];
      steps.sum_bias = sum(0);
      steps.sum_decay = sum(1);
      steps.sum_threshold = sum(2);
      steps.sum_gain = sum(3);
      scan_tile(steps, neurons, {0, M});
    }
  });
  for (std::int64_t s = 0; s < segments.count; ++s) {
    for (std::size_t i = 0; i < targets.size(); ++i) {
      if (targets[i] == nullptr) continue;
      for (std::int64_t c = 0; c < M; ++c) targets[i][c] += sums[(s * targets.size() + i) * M + c];
    }
  }
}

}  // namespace

template <typename Scalar, typename Projected>
void scan_backward(const ScanBackward<Scalar, Projected>& args, const Threads& threads) {
  using Real = State<Scalar>;
  const std::int64_t M = args.N * args.H;
  if (M == 0) return;
  const RepeatedNeurons<Real> neurons(args.neurons, args.H, repetition<Real>(args.H, M));
  if (args.lengths.length != nullptr) {
    return for_each_tile<Real>(args.T, M, 1 << 17, threads, [&](Span span) { scan_sequences(args, neurons, span); });
  }
  const auto segments = Segments::of<Real>(args.T, M, threads.count);
  if (segments.count > 1) return scan_segments(args, neurons, segments, threads);
  for_each_tile<Real>(args.T, M, 1 << 17, threads, [&](Span span) { scan_tile(args, neurons, span); });
}

template void scan_backward(const ScanBackward<float, float>&, const Threads&);
template void scan_backward(const ScanBackward<double, double>&, const Threads&);
template void scan_backward(const ScanBackward<float16, float>&, const Threads&);
template void scan_backward(const ScanBackward<bfloat16, float>&, const Threads&);
template void scan_backward(const ScanBackward<bfloat16, bfloat16>&, const Threads&);

}  // namespace leakypar::cpu
