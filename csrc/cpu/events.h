// Products with an input of events: zeros and one other value v, as the spikes of a layer are. Such a row is a set of
// features, and a product with it is a sum over the set:
//
//   u[r] = v sum_{c in set(r)} W^T[c]            dW^T[c] = v sum_{r: c in set(r)} d_u[r]
//
// Additions, and as many as there are spikes: below some share of ones this takes less time than the vendor's product takes
// for all of them. Each element of u is summed in the order of c and each of dW in the order of r, whatever the vectors and
// the threads.
//
// What the products skip is 0 times a number. Where that number is infinite or NaN a dense product would say NaN, so the
// weights and d_u are looked at, and what is not finite is left to the dense product.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "../kernels.h"
#include "../math/event_bits.h"

namespace leakypar::cpu {

// An input [T, N, C] as rows, T N of them, the features of each contiguous.
template <typename Scalar>
struct InputRows {
  const Scalar* x;
  std::int64_t rows, N, C;
  std::int64_t x_step, x_row;  // elements between time steps, and between batch rows

  const Scalar* operator[](std::int64_t row) const { return x + row / N * x_step + row % N * x_row; }
};

// Rows as bits (math/event_bits.h).
struct EventRows {
  std::int64_t rows, C;
  const std::uint64_t* bits;  // [rows, words]
  double value;               // v

  std::int64_t words() const { return event_words(C); }
};

// Packs rows into bits [rows, words], and returns v: the first value that is not zero, or zero where there is none. Nothing,
// and soon, where another value is neither zero nor v, or where v is not finite.
template <typename Scalar>
std::optional<Scalar> pack_events(std::uint64_t* bits, const InputRows<Scalar>& from, const Threads& threads);

// What pack_events made bits of: [rows, C], zeros and the events' value.
template <typename Scalar>
void unpack_events(Scalar* x, const EventRows& events, const Threads& threads);

// The ones among these words.
std::int64_t count_ones(const std::uint64_t* bits, std::int64_t words, const Threads& threads);

// A [C, H] matrix in the state type, cut into tiles of neurons: [tiles, C, width], the last tile filled up with zeros. A
// tile is as wide as the accumulators of the widest vectors.
template <typename Real>
struct NeuronTiles {
  static constexpr std::int64_t width = 512 / sizeof(Real);

  std::int64_t C, H;
  std::vector<Real> values;

  NeuronTiles(std::int64_t C, std::int64_t H) : C(C), H(H), values(tiles() * C * width) {}

  std::int64_t tiles() const { return (H + width - 1) / width; }
  Real* at(std::int64_t tile, std::int64_t c) { return values.data() + (tile * C + c) * width; }
  const Real* at(std::int64_t tile, std::int64_t c) const { return values.data() + (tile * C + c) * width; }
};

// The tiles of W^T from W [H, C], weight_row elements between rows. False where a weight is not finite.
template <typename Scalar>
bool pack_weights(NeuronTiles<State<Scalar>>& tiles, const Scalar* weight, std::int64_t weight_row,
                  const Threads& threads);

// u [rows, H] from packed rows and weights.
template <typename Real, typename Projected>
void project_events(Projected* u, const EventRows& events, const NeuronTiles<Real>& weights, const Threads& threads);

// dW^T += the events' product with d_u [rows, H].
template <typename Real, typename Projected>
void add_event_gradient(NeuronTiles<Real>& sums, const EventRows& events, const Projected* d_u, const Threads& threads);

// Whether every one of these values is finite.
template <typename Scalar>
bool all_finite(const Scalar* values, std::int64_t count, const Threads& threads);

// grad_weight [H, C] += the transpose of the tiles.
template <typename Real>
void add_transposed(Real* grad_weight, const NeuronTiles<Real>& sums, const Threads& threads);

}  // namespace leakypar::cpu
