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
// Rows past the first `there` of a half are rows of zeros.
struct CopySource {
  const unsigned char* half[2];
  std::int64_t stride;  // bytes
  int there[2];
};

// How many of `count` indices first, first + step, ... lie below the limit.
__device__ __forceinline__ int below(std::int64_t first, int step, std::int64_t limit, int count) {
  const std::int64_t left = limit - first;
  const int near = left < 0 ? 0 : left < step * count ? static_cast<int>(left) : step * count;
  return static_cast<int>(static_cast<unsigned>(near + step - 1) / static_cast<unsigned>(step));
}

inline constexpr int rows_at_once = ProjectTiles::threads / pieces;  // a multiple of 8: the place within a row stays

// One k-slice of Rows rows into a slot; row_of(i) is the row of the thread's copy i.
template <typename Scalar, int Rows, int Bytes, typename RowOf>
__device__ __forceinline__ void copy_rows(unsigned char* slot, std::int64_t k_slice, std::int64_t row_bytes,
                                          const Scalar* fallback, const CopySource& source, const RowOf& row_of) {
  constexpr int count = Rows / rows_at_once;
  const int piece = static_cast<int>(threadIdx.x) % pieces, first = static_cast<int>(threadIdx.x) / pieces;
  const std::int64_t offset = k_slice * k_slice_bytes + piece * piece_bytes;
  const std::int64_t left = row_bytes - offset;
  const int whole = left <= 0 ? 0 : left < piece_bytes ? static_cast<int>(left) : piece_bytes;
  unsigned char* const to = slot + first * k_slice_bytes + (piece ^ (first % pieces)) * piece_bytes;
  const unsigned char* low = source.half[0] + offset;
  const unsigned char* high = source.half[1] + offset;
  const int low_there = whole > 0 ? source.there[0] : 0, high_there = whole > 0 ? source.there[1] : 0;
#pragma unroll(Bytes == piece_bytes ? count : 1)  // narrower copies are rare, and their code need not be large
  for (int i = 0; i < count; ++i) {
    const bool second = i >= count / 2;
    const bool there = second ? i - count / 2 < high_there : i < low_there;
    copy_piece<Scalar, Bytes>(to + row_of(i) * rows_at_once * k_slice_bytes, second ? high : low, there ? whole : 0,
                              reinterpret_cast<const unsigned char*>(fallback));
    (second ? high : low) += source.stride;
  }
}

template <typename Scalar, int Rows, typename RowOf>
__device__ __forceinline__ void copy_k_slice(unsigned char* slot, int access, std::int64_t k_slice,
                                             std::int64_t row_bytes, const Scalar* fallback, const CopySource& source,
                                             const RowOf& row_of) {
  switch (access) {
    case 16:
      return copy_rows<Scalar, Rows, 16>(slot, k_slice, row_bytes, fallback, source, row_of);
    case 8:
      return copy_rows<Scalar, Rows, 8>(slot, k_slice, row_bytes, fallback, source, row_of);
    case 4:
      return copy_rows<Scalar, Rows, 4>(slot, k_slice, row_bytes, fallback, source, row_of);
    default:
      return copy_rows<Scalar, Rows, static_cast<int>(sizeof(Scalar))>(slot, k_slice, row_bytes, fallback, source,
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

  // As ProjectTiles has it: a tile's steps are a power of two.
  template <int Pairs>
  __device__ __forceinline__ std::int64_t time_tiles(std::int64_t T) const {
    const int shift = time_shift + (Pairs == 8 ? 4 : 3);
    return (T + (std::int64_t{1} << shift) - 1) >> shift;
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

// Adds the product of one k_slice. steps: matrix instructions' worth of k that it holds, at most four.
template <typename Scalar, int Pairs>
__device__ __forceinline__ void multiply_k_slice(Accumulators<Pairs>& u, const unsigned char* weight,
                                                 const unsigned char* x, int steps, const Thread& thread) {
  const int lane = thread.lane;
  const int a_row = thread.warp_row * warp_neurons + lane % 16;
  const int b_row = thread.warp_column * 8 * Pairs + lane % 8 + lane / 16 * 8;
  const int a_offset = a_row * k_slice_bytes + ((lane / 16) ^ (lane % 8)) * piece_bytes;
  const int b_offset = b_row * k_slice_bytes + ((lane / 8 % 2) ^ (lane % 8)) * piece_bytes;
#pragma unroll
  for (int step = 0; step < k_slice_bytes / step_bytes; ++step) {
    if (step < steps) {
      const unsigned char* const a_from = weight + (a_offset ^ (step * step_bytes));
      const unsigned char* const b_from = x + (b_offset ^ (step * step_bytes));
      Fragment a[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        load_matrices(a[i], a_from + i * 16 * k_slice_bytes);
        round_operand<Scalar>(a[i]);
      }
#pragma unroll
      for (int j = 0; j < Pairs; j += 2) {
        Fragment b[4];
        load_matrices(b, b_from + j * 8 * k_slice_bytes);
        round_operand<Scalar>(b);
        const Fragment left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          multiply(Scalar(), u[i][j], a[i], left);
          multiply(Scalar(), u[i][j + 1], a[i], right);
        }
      }
    }
  }
}

}  // namespace leakypar::cuda
