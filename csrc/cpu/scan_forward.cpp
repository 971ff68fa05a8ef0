// h_t = relu(w h_{t-1} + u_t + b),  S_t = gain * 1[h_t - threshold > 0], for every channel, in time order.
//
// A tile reads each u once and writes each output once: T * M * (1 + outputs) elements move, and the rest stays in
// cache. The state of a tile between two rows is its carry, so a tile may stop after any row and go on from it.
#include "../math/clamp_affine.h"
#include "tile.h"
#include "vectors.h"

namespace leakypar::cpu {
namespace {

template <typename Scalar>
struct ForwardTile {
  using Real = State<Scalar>;

  Columns<Real> h;         // the carry
  Columns<Real> arriving;  // of one row
  Columns<Real> decay, bias, threshold;
  Columns<Scalar> gain;  // what a spike is worth, as the element that is written

  ForwardTile(const ScanForward<Scalar>& args, Span span) {
    load_parameter(args.decay, args.H, span, decay);
    load_parameter(args.bias_ih, args.H, span, bias);
    add_parameter(args.bias_hh, args.H, span, bias);
    load_parameter(args.threshold, args.H, span, threshold);
    load_parameter(args.gain, args.H, span, h);
    for (std::int64_t c = 0; c < span.width; ++c) gain[c] = to_element<Scalar>(h[c]);
    load_state(args.initial, span, h);
  }
};

// What arrives at a time step. It is taken before anything is written: u may be the row that an output is written to.
template <typename Scalar>
LEAKYPAR_ALWAYS_INLINE inline void arriving_row(ForwardTile<Scalar>& tile, std::int64_t width,
                                                const Scalar* __restrict u) {
  for (std::int64_t c = 0; c < width; ++c) tile.arriving[c] = to_state(u[c]) + tile.bias[c];
}

// One time step of a tile. spikes and membrane are rows of it; the flags say which of them exist.
template <bool kSpikes, bool kMembrane, typename Scalar>
LEAKYPAR_ALWAYS_INLINE inline void forward_row(ForwardTile<Scalar>& tile, std::int64_t width, Scalar* __restrict spikes,
                                               Scalar* __restrict membrane) {
  using Real = State<Scalar>;
  for (std::int64_t c = 0; c < width; ++c) {
    const Real h = membrane_step(tile.decay[c], tile.h[c], tile.arriving[c]);
    tile.h[c] = h;
    if constexpr (kSpikes) spikes[c] = keep_if(spike(h - tile.threshold[c]), tile.gain[c]);
    if constexpr (kMembrane) membrane[c] = to_element<Scalar>(h);
  }
}

// Carries the tile from the membrane before row `begin` to the membrane after row `end` - 1.
template <typename Scalar>
void forward_rows(const ScanForward<Scalar>& args, Span span, std::int64_t begin, std::int64_t end,
                  ForwardTile<Scalar>& tile) {
  const std::int64_t M = args.N * args.H;
  with_widest_vectors([&]() LEAKYPAR_ALWAYS_INLINE {
    with_flag(args.spikes != nullptr, [&](auto has_spikes) LEAKYPAR_ALWAYS_INLINE {
      with_flag(args.membrane != nullptr, [&](auto has_membrane) LEAKYPAR_ALWAYS_INLINE {
        for (std::int64_t t = begin; t < end; ++t) {
          const std::int64_t row = t * M + span.first;
          arriving_row(tile, span.width, args.u + row);
          forward_row<has_spikes(), has_membrane()>(tile, span.width, has_spikes() ? args.spikes + row : nullptr,
                                                    has_membrane() ? args.membrane + row : nullptr);
        }
      });
    });
  });
}

}  // namespace

template <typename Scalar>
void scan_forward(const ScanForward<Scalar>& args, const ParallelFor& parallel_for) {
  for_each_tile<State<Scalar>>(args.T, args.N * args.H, parallel_for, [&](Span span) {
    ForwardTile<Scalar> tile(args, span);
    forward_rows(args, span, 0, args.T, tile);
    store_state(tile.h, span, args.last);
  });
}

template void scan_forward(const ScanForward<float>&, const ParallelFor&);
template void scan_forward(const ScanForward<double>&, const ParallelFor&);
template void scan_forward(const ScanForward<float16>&, const ParallelFor&);
template void scan_forward(const ScanForward<bfloat16>&, const ParallelFor&);

}  // namespace leakypar::cpu
