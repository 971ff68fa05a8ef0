// What a block of project_scan.cuh works on: its copies into shared memory, its threads' places, and the product of a k_slice.
#pragma once

#include "../kernels.h"
#include "async_copy.cuh"
#include "channels.cuh"
#include "launch.cuh"
#include "look_back.cuh"
#include "matrix.cuh"

namespace leakypar::cuda {

inline constexpr int lane_neurons = 8;
inline constexpr int warp_neurons = 64;
inline constexpr int k_slice_bytes = ProjectTiles::k_slice_bytes;
inline constexpr int piece_bytes = 16;
inline constexpr int pieces = k_slice_bytes / piece_bytes;
inline constexpr int step_bytes = 32;  // of k, that one matrix instruction takes

// How wide copies and stores may be: what strides and addresses allow.
struct Access {
  int x, weight;  // bytes: 16, 8 or 4, or the size of an element
  bool packets;   // 16-byte stores
};

// Row p of the weights in shared memory is row p of the product, and holds this neuron of the tile: lane group g has rows
// g and g + 8 of four 16-row fragments, eight neurons in pieces of 16 bytes.
template <typename Scalar>
__device__ __forceinline__ int neuron_of(int group, int which) {
  constexpr int packet = piece_bytes / static_cast<int>(sizeof(Scalar));
  return which / packet * (8 * packet) + group * packet + which % packet;
}
template <typename Scalar>
__device__ __forceinline__ int neuron_of_row(int p) {
  return p / warp_neurons * warp_neurons + neuron_of<Scalar>(p % 8, p % warp_neurons / 8);
}

// A piece of 16 bytes, `valid` of them and zeros, in copies of Bytes, of which `valid` is a multiple. Below four bytes there
// is no asynchronous copy. With none valid, `from` is not read, and may be any address; fallback is a valid one, which
// narrow copies need even when they copy 0 bytes.
template <typename Scalar, int Bytes>
__device__ __forceinline__ void copy_piece(unsigned char* to, const unsigned char* from, int valid,
                                           const unsigned char* fallback) {
  if constexpr (Bytes == piece_bytes) {
    copy_async_or_zero(to, from, valid > 0);
  } else if constexpr (Bytes >= 4) {
#pragma unroll
    for (int at = 0; at < piece_bytes; at += Bytes) {
      copy_async<Bytes>(to + at, at < valid ? from + at : fallback, at < valid ? Bytes : 0);
    }
  } else {
    Packet<Scalar, piece_bytes / static_cast<int>(sizeof(Scalar))> packet = {};
    const auto* elements = reinterpret_cast<const Scalar*>(from);
#pragma unroll
    for (int i = 0; i < piece_bytes / static_cast<int>(sizeof(Scalar)); ++i) {
      if (i * static_cast<int>(sizeof(Scalar)) < valid) packet.element[i] = elements[i];
    }
    *reinterpret_cast<decltype(packet)*>(to) = packet;
  }
}

// Where one thread copies an operand's rows from. It has Rows / 16 of them, half behind each of two addresses, a constant
// stride apart, so that a copy costs an addition and not the way from its row to a neuron or to a time step and batch row.
// Found once a tile, it leaves a k-slice nothing but additions.
struct CopySource {
  const unsigned char* half[2];  // the thread's piece of the first k-slice
  std::int64_t stride;           // bytes
  int there;  // rows of the first half, and 16 times those of the second; past them are rows of zeros
};

// How many of `count` indices first, first + step, ... lie below the limit.
__device__ __forceinline__ int below(std::int64_t first, int step, std::int64_t limit, int count) {
  const std::int64_t left = limit - first;
  const int near = left < 0 ? 0 : left < step * count ? static_cast<int>(left) : step * count;
  return static_cast<int>(static_cast<unsigned>(near + step - 1) / static_cast<unsigned>(step));
}

inline constexpr int rows_at_once = ProjectTiles::threads / pieces;  // a multiple of 8: the place within a row stays

// One k-slice of Rows rows into a slot; row_of(i) is the row of the thread's copy i. Whole: every piece is there.
template <typename Scalar, int Rows, int Bytes, bool Whole, typename RowOf>
__device__ __forceinline__ void copy_rows(unsigned char* slot, std::int64_t k_slice, std::int64_t row_bytes,
                                          const Scalar* fallback, const CopySource& source, const RowOf& row_of) {
  constexpr int count = Rows / rows_at_once;
  const int piece = static_cast<int>(threadIdx.x) % pieces, first = static_cast<int>(threadIdx.x) / pieces;
  const std::int64_t offset = k_slice * k_slice_bytes;
  const std::int64_t left = row_bytes - offset - piece * piece_bytes;
  const int valid = left >= piece_bytes ? piece_bytes : left <= 0 ? 0 : static_cast<int>(left);
  unsigned char* const to = slot + first * k_slice_bytes + (piece ^ (first % pieces)) * piece_bytes;
  const unsigned char* low = source.half[0] + offset;
  const unsigned char* high = source.half[1] + offset;
#pragma unroll(Whole || Bytes == 16 ? count : 1)  // narrower copies are rare, and their code need not be large
  for (int i = 0; i < count; ++i) {
    const bool second = i >= count / 2;
    unsigned char* const to_row = to + row_of(i) * rows_at_once * k_slice_bytes;
    const unsigned char* const from = second ? high : low;
    if constexpr (Whole) {
      for (int at = 0; at < piece_bytes; at += Bytes) copy_async<Bytes>(to_row + at, from + at, Bytes);
    } else {
      const bool there = second ? i - count / 2 < source.there / 16 : i < source.there % 16;
      copy_piece<Scalar, Bytes>(to_row, from, there ? valid : 0, reinterpret_cast<const unsigned char*>(fallback));
    }
    (second ? high : low) += source.stride;
  }
}

template <typename Scalar, int Rows, typename RowOf>
__device__ __forceinline__ void copy_k_slice(unsigned char* slot, int access, int k_slice, std::int64_t row_bytes,
                                             const Scalar* fallback, const CopySource& source, const RowOf& row_of) {
  constexpr int all = 17 * (Rows / rows_at_once / 2);
  if (source.there == all && access >= 8 && k_slice < row_bytes / k_slice_bytes) {
    if (access == 16) {
      copy_rows<Scalar, Rows, 16, true>(slot, k_slice, row_bytes, fallback, source, row_of);
    } else {
      copy_rows<Scalar, Rows, 8, true>(slot, k_slice, row_bytes, fallback, source, row_of);
    }
  } else if (access == 16) {
    copy_rows<Scalar, Rows, 16, false>(slot, k_slice, row_bytes, fallback, source, row_of);
  } else if (access == 8) {
    copy_rows<Scalar, Rows, 8, false>(slot, k_slice, row_bytes, fallback, source, row_of);
  } else if (access == 4) {
    copy_rows<Scalar, Rows, 4, false>(slot, k_slice, row_bytes, fallback, source, row_of);
  } else {
    copy_rows<Scalar, Rows, static_cast<int>(sizeof(Scalar)), false>(slot, k_slice, row_bytes, fallback, source,
                                                                     row_of);
  }
}

// A thread's place in the block and in the grid.
struct Thread {
  int lane, group, quad;                 // lane = 4 group + quad
  int warp_row, warp_column;             // which 64 neurons, which half of the columns
  int run;                               // of the tile's 8
  std::int64_t first_neuron, first_row;  // of the tile
  std::int64_t team;                     // of blocks that share neurons and batch rows
  int time_runs, time_shift;             // runs of one batch row in a tile: 1 << time_shift

  // teams: as ProjectTiles has it, counted by the host. All divisions are of 32 bits, since a grid has fewer than 2^31
  // blocks: one of 64 bits is a call of some hundred instructions.
  __device__ __forceinline__ Thread(const ProjectTiles& tiles, unsigned teams, std::int64_t H) {
    const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
    lane = static_cast<int>(threadIdx.x) % warp_lanes;
    group = lane / 4;
    quad = lane % 4;
    warp_row = warp / 2;
    warp_column = warp % 2;
    run = 4 * warp_column + quad;
    const unsigned of_teams = blockIdx.x % teams;
    const auto neuron_tiles = static_cast<unsigned>(tiles.neuron_tiles(H));
    team = of_teams;
    first_neuron = static_cast<std::int64_t>(of_teams % neuron_tiles) * ProjectTiles::neurons;
    first_row = static_cast<std::int64_t>(of_teams / neuron_tiles) * tiles.batch_rows;
    time_runs = ProjectTiles::runs / tiles.batch_rows;
    time_shift = __ffs(time_runs) - 1;
  }

  __device__ __forceinline__ std::int64_t row_of(int run) const { return first_row + (run >> time_shift); }
  __device__ __forceinline__ int place_in_time(int run) const { return run & (time_runs - 1); }

  // As ProjectTiles has them; a tile's steps are a power of two.
  template <int Pairs>
  __device__ __forceinline__ int steps_shift() const {
    return time_shift + (Pairs == 8 ? 4 : 3);
  }
  template <int Pairs>
  __device__ __forceinline__ std::int64_t time_tiles(std::int64_t T) const {
    return (T + (std::int64_t{1} << steps_shift<Pairs>()) - 1) >> steps_shift<Pairs>();
  }
};

// A block's shared memory; plan/project.h counts its bytes.
struct Shared {
  unsigned char* weight;  // [k_slices or stages][128 rows][128 bytes]
  unsigned char* x;       // [stages][columns][128 bytes]
  float* maps;            // [offset, below, above][runs][map_pitch]; then the carry into each run in place of the first
  float* carries;         // [batch_rows][128]
  float* bias;            // [128], and the same of decay, threshold and gain, in the order of the product's rows
  float* decay;
  float* threshold;
  float* gain;
  unsigned* ticket;  // [1]

  __device__ __forceinline__ Shared(const ProjectTiles& tiles, std::int64_t k_slices) {
    constexpr int neurons = ProjectTiles::neurons;
    weight = static_cast<unsigned char*>(shared_memory());
    x = weight + (tiles.weights_resident ? k_slices : tiles.stages) * neurons * k_slice_bytes;
    maps = reinterpret_cast<float*>(x + tiles.stages * tiles.columns() * k_slice_bytes);
    carries = maps + 3 * ProjectTiles::runs * ProjectTiles::map_pitch;
    bias = carries + tiles.batch_rows * neurons;
    decay = bias + neurons;
    threshold = decay + neurons;
    gain = threshold + neurons;
    ticket = reinterpret_cast<unsigned*>(gain + neurons);
  }

  __device__ __forceinline__ float& map(int field, int run, int row) const {
    return maps[(field * ProjectTiles::runs + run) * ProjectTiles::map_pitch + row];
  }
};

// Accumulators: [16-row fragment][8-column fragment][row half * 2 + column]. As the scan sees them: neuron `which` of the
// lane's eight, at a step of its run.
template <int Pairs>
using Accumulators = float[4][Pairs][4];

template <int Pairs>
__device__ __forceinline__ float& at(Accumulators<Pairs>& u, int which, int step) {
  return u[which / 2][step / 2][which % 2 * 2 + step % 2];
}

// The product of one k-slice, whose operands are loaded ahead of their use: the weights of a step while the step before it
// multiplies, x a pair of fragments ahead. A load takes some thirty clocks, and a warp may have its scheduler to itself. Steps
// past the last column multiply zeros: without a condition the slice is straight code, in which loads can be moved.
template <typename Scalar, int Pairs>
class KSlice {
  static constexpr int steps = k_slice_bytes / step_bytes;
  // Sets of fragments. There are registers for two of the weights beside a wide tile alone: three blocks with narrow ones share
  // a multiprocessor's. There the steps are separate, by a condition, too: the compiler would load all of the slice at once.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 860 && __CUDA_ARCH__ < 900
  static constexpr bool ahead = Pairs == 8 && sizeof(Scalar) == 2;  // it does, and spills, in wide tiles of TF32
#else
  static constexpr bool ahead = Pairs == 8;
#endif
  static constexpr int a_sets = ahead ? 2 : 1, b_sets = Pairs == 8 || sizeof(Scalar) == 2 ? 2 : 1;

  const unsigned char *weight_, *x_;
  int a_offset_, b_offset_;
  Fragment a_[a_sets][4][4], b_[b_sets][4];

  __device__ __forceinline__ void load_weight(int step) {
    const unsigned char* const from = weight_ + (a_offset_ ^ (step * step_bytes));
#pragma unroll
    for (int i = 0; i < 4; ++i) load_matrices(a_[step % a_sets][i], from + i * 16 * k_slice_bytes);
  }
  // The k-slice's n-th pair of fragments of x, Pairs / 2 of them a step.
  __device__ __forceinline__ void load_x(int n) {
    const int step = n / (Pairs / 2), j = n % (Pairs / 2) * 2;
    load_matrices(b_[n % b_sets], x_ + (b_offset_ ^ (step * step_bytes)) + j * 8 * k_slice_bytes);
  }

 public:
  // Starts the first loads.
  __device__ __forceinline__ KSlice(const unsigned char* weight, const unsigned char* x, const Thread& thread)
      : weight_(weight), x_(x) {
    const int lane = thread.lane;
    const int a_row = thread.warp_row * warp_neurons + lane % 16;
    const int b_row = thread.warp_column * 8 * Pairs + lane % 8 + lane / 16 * 8;
    a_offset_ = a_row * k_slice_bytes + ((lane / 16) ^ (lane % 8)) * piece_bytes;
    b_offset_ = b_row * k_slice_bytes + ((lane / 8 % 2) ^ (lane % 8)) * piece_bytes;
    if constexpr (a_sets == 2) load_weight(0);
    if constexpr (b_sets == 2) load_x(0);
  }

  // count: matrix instructions' worth of k that the slice holds, at most four.
  __device__ __forceinline__ void add_to(Accumulators<Pairs>& u, int count) {
#pragma unroll
    for (int n = 0; n < steps * Pairs / 2; ++n) {
      const int step = n / (Pairs / 2), j = n % (Pairs / 2) * 2;
      if (!ahead && j == 0 && step >= count) return;
      if (n + b_sets - 1 < steps * Pairs / 2) load_x(n + b_sets - 1);
      if (j == 0 && step + a_sets - 1 < steps) load_weight(step + a_sets - 1);
      if (j == 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) round_operand<Scalar>(a_[step % a_sets][i]);
      }
      Fragment(&b)[4] = b_[n % b_sets];
      round_operand<Scalar>(b);
      const Fragment left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        multiply(Scalar(), u[i][j], a_[step % a_sets][i], left);
        multiply(Scalar(), u[i][j + 1], a_[step % a_sets][i], right);
      }
    }
  }
};

}  // namespace leakypar::cuda
