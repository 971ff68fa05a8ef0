// The projection, the scan and the spike in one kernel; u never reaches memory:
//
//   u_t = W x_t     h_t = clamp(w h_{t-1} + u_t + b, lower, upper),   h_0 = initial_membrane
//   S_t = gain * 1[f_t h_t - threshold > 0]
//
// Operand order. Neurons are the rows of the product and (time, batch) its columns: d = W x^T, both operands with k
// contiguous, as ldmatrix wants them. Which neuron is which row and which step is which column is free, since ldmatrix
// takes an address for each row; so both are permuted when they are copied to shared memory, at no cost, until
//
//   a lane's accumulators hold 8 neurons, neighbours in memory, by a run of 2 Pairs consecutive steps of one batch row.
//
// The scan of a run then needs no other lane, and a step's 8 neurons leave as 16-byte stores straight from registers: the
// transposed store that this operand order costs elsewhere does not exist. Quads of lanes complete each other's lines.
//
// Mapping. Four warps a block, two by neurons and two by columns; a tile is 128 neurons by 16 Pairs columns, 8 runs lying
// side by side in batch, in time, or in both (plan/project.h). Blocks of one team own the same neurons and batch rows.
// A block, tile by tile:
//
//   1. multiplies: k-slices of 128 bytes pass through a ring of `stages` slots, one barrier a k-slice; weights stay in
//      shared memory from tile to tile where they fit, and pass through the ring too where they do not;
//   2. composes each run to one map of the carry, and leaves it in shared memory;
//   3. starts the copies of its next tile, as many k-slices as there are slots;
//   4. walks the runs of each (neuron, batch row), one thread a neuron: from the carry into the tile to the carry into
//      each run. One block a team: the carry stays here. Several: it comes by look-back (look_back.cuh), and blocks take
//      tiles by ticket, each only after its last product, so neighbouring tiles are always in different blocks' hands;
//   5. replays its runs from their carries, and stores.
//
// Shared memory. Rows of 128 bytes; the 16-byte piece c of row r lies at place c XOR (r mod 8). The eight rows that one
// matrix of an ldmatrix reads have the same c and eight different r mod 8: all 32 banks, once. So do the eight pieces of
// a row that eight lanes copy. Maps and carries are single numbers: a warp's lanes are 8 neighbouring neurons by 4 runs, and
// runs begin 8 banks apart.
//
// Bytes moved: x is read once for each 128 neurons (by the cache's grace, once from memory), W once a block where it stays,
// and each of spikes and membrane that is asked for is written once.
//
// project_scan_*.cu make this code, a file for each element type: they compile side by side.
#pragma once

#include "../kernels.h"
#include "project_runs.cuh"
#include "project_tile.cuh"

namespace leakypar::cuda {
namespace {

// Two blocks a multiprocessor with wide tiles, three with narrow ones: what the accumulators leave of the registers. A third
// block of narrow tiles in TF32 would cost a spilled register.
template <typename Scalar, int Pairs, bool Plain>
__global__ void __launch_bounds__(ProjectTiles::threads, Pairs == 8 || sizeof(Scalar) == 4 ? 2 : 3)
    project_scan_kernel(const ProjectScan<Scalar> args, const ProjectTiles tiles, const Access access,
                        const Tiling tiling, const LookBack<Map> book) {
  constexpr int columns = 16 * Pairs;
  constexpr int neurons = ProjectTiles::neurons;
  const Thread thread(tiles, static_cast<unsigned>(tiling.tickets), args.H);
  const std::int64_t row_bytes = args.C * static_cast<std::int64_t>(sizeof(Scalar));
  const std::int64_t computed = ProjectTiles::k_slices(args.C, sizeof(Scalar));
  const int k_slices = static_cast<int>(computed > 0 ? computed : 1);
  const std::int64_t time_tiles = thread.time_tiles<Pairs>(args.T);
  const Shared shared(tiles, k_slices);
  const bool split = tiling.time_tiles > 1;

  // A row of the product each: its neuron's parameters. Rows past the last neuron have zero weights and store nothing.
  const int own_row = static_cast<int>(threadIdx.x);
  const std::int64_t own_neuron = thread.first_neuron + neuron_of_row<Scalar>(own_row);
  const std::int64_t neuron = own_neuron < args.H ? own_neuron : 0;
  shared.bias[own_row] = read<float>(args.neurons.bias_ih, neuron) + read<float>(args.neurons.bias_hh, neuron);
  shared.decay[own_row] = read<float>(args.neurons.decay, neuron);
  shared.threshold[own_row] = read<float>(args.neurons.threshold, neuron);
  shared.gain[own_row] = read<float>(args.neurons.gain, neuron);

  if (split && threadIdx.x == 0) *shared.ticket = atomicAdd(book.ticket + thread.team, 1u);
  __syncthreads();  // parameters and ticket are there
  std::int64_t tile = split ? *shared.ticket : 0;
  if (tile >= time_tiles) return;

  // A thread copies the rows first + 16 i of both operands. Of the weights, row p holds neuron_of_row(p): with 16-bit
  // elements the rows of one i after the other are two neurons apart, and 64 from the fourth to the fifth; with 32-bit
  // ones every second i is 32 apart, so that the even ones are copied first.
  constexpr bool whole_packets = sizeof(Scalar) == 2;
  const int piece_offset = static_cast<int>(threadIdx.x) % pieces * piece_bytes;
  const auto weight_source = [&] {
    constexpr int step = whole_packets ? 2 : 32, half = whole_packets ? 64 : 2;
    const std::int64_t h = thread.first_neuron + neuron_of_row<Scalar>(static_cast<int>(threadIdx.x) / pieces);
    const auto* const base = reinterpret_cast<const unsigned char*>(args.weight) + piece_offset;
    const std::int64_t stride = args.weight_row * static_cast<std::int64_t>(sizeof(Scalar));
    return CopySource{{base + h * stride, base + (h + half) * stride},
                      step * stride,
                      below(h, step, args.H, 4) + 16 * below(h + half, step, args.H, 4)};
  };
  // Column p of the product: of the warp's 8 Pairs columns, fragment j and column c of it are run c / 2 of the warp's
  // four, and step 2 j + c % 2 of that run. From one i to the next a run goes on by four steps; the second half of a
  // thread's columns are those of the run four further.
  const auto x_source = [&](std::int64_t tile) {
    constexpr int half = columns / rows_at_once / 2;
    const int first = static_cast<int>(threadIdx.x) / pieces;
    CopySource source;
    source.there = 0;
    source.stride = 4 * args.x_step * static_cast<std::int64_t>(sizeof(Scalar));
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int run = first % 8 / 2 + 4 * h;
      const std::int64_t n = thread.row_of(run);
      const std::int64_t t =
          (tile << thread.steps_shift<Pairs>()) + thread.place_in_time(run) * (2 * Pairs) + first / 8 * 2 + first % 2;
      source.half[h] = reinterpret_cast<const unsigned char*>(args.x + t * args.x_step + n * args.x_row) + piece_offset;
      source.there += n < args.N ? below(t, 4, args.T, half) << 4 * h : 0;
    }
    return source;
  };
  const auto copy = [&](const CopySource& x, int k_slice, int slot, bool with_weight) {
    if (with_weight) {
      unsigned char* const to = shared.weight + (tiles.weights_resident ? k_slice : slot) * neurons * k_slice_bytes;
      copy_k_slice<Scalar, neurons>(to, access.weight, k_slice, row_bytes, args.weight, weight_source(),
                                    [](int i) { return whole_packets ? i : i % 4 * 2 + i / 4; });
    }
    copy_k_slice<Scalar, columns>(shared.x + slot * columns * k_slice_bytes, access.x, k_slice, row_bytes, args.x, x,
                                  [](int i) { return i; });
  };
  // Waits count groups of copies, and the instruction takes a constant. Empty groups behind those of each slot make the
  // count the same for every number of stages.
  const auto end_slots = [&] {
    commit_copies();
    commit_copies_if(tiles.stages < 4);
    commit_copies_if(tiles.stages < 3);
    commit_copies_if(tiles.stages == 1);
  };
  const auto begin = [&](std::int64_t tile, bool with_weight) {
    const CopySource x = x_source(tile);
#pragma unroll 1
    for (int k_slice = 0;; ++k_slice) {
      copy(x, k_slice, k_slice, with_weight);
      if (k_slice + 1 == tiles.stages) break;
      commit_copies();
    }
    end_slots();
  };

  bool with_weight = true;
  begin(tile, with_weight);
  for (;;) {
    Accumulators<Pairs> u;
#pragma unroll
    for (int which = 0; which < lane_neurons; ++which) {
      const float bias = shared.bias[thread.warp_row * warp_neurons + which * 8 + thread.group];
#pragma unroll
      for (int step = 0; step < 2 * Pairs; ++step) at<Pairs>(u, which, step) = bias;
    }
    const CopySource x = x_source(tile);  // kept in registers from its first copies on, it would cost the scan its own
    int slot = 0, k_slice = 0;
    do {
      // The slots were filled at once before the first k-slice, and are refilled one a k-slice from the second on.
      if (k_slice == 0) {
        wait_copies<ProjectTiles::max_stages - 1>();
      } else {
        wait_copies<ProjectTiles::max_stages - 2>();
      }
      __syncthreads();  // every thread's part of the k-slice is there, and everyone has left the one before it
      KSlice<Scalar, Pairs> product(shared.weight + (tiles.weights_resident ? k_slice : slot) * neurons * k_slice_bytes,
                                    shared.x + slot * columns * k_slice_bytes, thread);
      if (k_slice > 0) {
        const int ahead = k_slice + tiles.stages - 1;
        if (ahead < k_slices) copy(x, ahead, slot == 0 ? tiles.stages - 1 : slot - 1, with_weight);
        end_slots();
      }
      const std::int64_t left = row_bytes - static_cast<std::int64_t>(k_slice) * k_slice_bytes;
      product.add_to(u, static_cast<int>(left < k_slice_bytes ? (left + step_bytes - 1) / step_bytes : 4));
      slot = slot + 1 == tiles.stages ? 0 : slot + 1;
    } while (++k_slice < k_slices);
    with_weight = !tiles.weights_resident;

    if (split && threadIdx.x == 0) *shared.ticket = atomicAdd(book.ticket + thread.team, 1u);
    const auto clip = ClipOf<float, Plain>::of(args.neurons.bounds);
    compose_runs<Pairs>(u, shared, thread, clip);
    __syncthreads();  // maps and ticket are there, and every slot is free
    const std::int64_t next = split ? *shared.ticket : tile + 1;
    if (next < time_tiles) begin(next, with_weight);
    carry_into_runs<Pairs>(args, tiles, shared, thread, tile, tiling, book);
    __syncthreads();  // every run's carry is there
    if (access.packets) {
      replay_run<Plain, true, Scalar, Pairs>(u, args, shared, thread, tile, clip);
    } else {
      replay_run<Plain, false, Scalar, Pairs>(u, args, shared, thread, tile, clip);
    }
    if (next >= time_tiles) return;
    tile = next;
  }
}

// The widest copy that a matrix of rows allows: rows begin on such a boundary and end on one. Strides of dimensions of size one mean nothing.
template <typename Scalar>
int widest(const Scalar* data, std::initializer_list<std::int64_t> strides) {
  auto bits = static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(data));
  for (const std::int64_t stride : strides) bits |= static_cast<std::uint64_t>(stride) * sizeof(Scalar);
  for (const int bytes : {16, 8, 4}) {
    if (bits % bytes == 0) return bytes;
  }
  return static_cast<int>(sizeof(Scalar));
}

template <typename Scalar>
Access access_of(const ProjectScan<Scalar>& args) {
  const auto stride = [](std::int64_t size, std::int64_t stride) { return size > 1 ? stride : 0; };
  const bool packets = widest(args.outputs.spikes, {args.H}) == 16 && widest(args.outputs.membrane, {args.H}) == 16;
  return {widest(args.x, {args.C, stride(args.T, args.x_step), stride(args.N, args.x_row)}),
          widest(args.weight, {args.C, stride(args.H, args.weight_row)}), packets};
}

template <typename Scalar>
Tiling tiling_of(const ProjectScan<Scalar>& args, const ProjectTiles& tiles) {
  const std::int64_t teams = tiles.teams(args.N, args.H);
  const std::int64_t time_tiles = tiles.time_blocks > 1 ? tiles.time_tiles(args.T) : 1;
  constexpr int warps = ProjectTiles::threads / warp_lanes;
  return {args.T, teams * tiles.batch_rows * ProjectTiles::neurons, time_tiles, teams * warps, warps, teams};
}

}  // namespace

template <typename Scalar>
std::int64_t project_scan_workspace(const ProjectScan<Scalar>& args, const ProjectTiles& tiles) {
  if (args.T == 0 || args.N * args.H == 0) return 0;
  return LookBack<Map>::bytes(tiling_of(args, tiles));
}

template <typename Scalar>
cudaError_t project_scan(const ProjectScan<Scalar>& args, const ProjectTiles& tiles, void* workspace,
                         cudaStream_t stream) {
  if (args.T == 0 || args.N * args.H == 0) return cudaSuccess;
  const Tiling tiling = tiling_of(args, tiles);
  const cudaError_t error = LookBack<Map>::clear(workspace, tiling, stream);
  if (error != cudaSuccess) return error;
  const std::int64_t blocks = tiles.teams(args.N, args.H) * tiles.time_blocks;
  const auto shared_bytes = static_cast<std::size_t>(tiles.shared_bytes(args.C, sizeof(Scalar)));
  const auto of_width = [&](auto plain) {
    constexpr bool Plain = decltype(plain)::value;
    return tiles.wide ? project_scan_kernel<Scalar, 8, Plain> : project_scan_kernel<Scalar, 4, Plain>;
  };
  const bool plain = args.neurons.bounds.rectify() && args.dropout.seed == nullptr && args.lengths.length == nullptr;
  const auto kernel = plain ? of_width(std::true_type()) : of_width(std::false_type());
  const cudaError_t launched = launch(kernel, blocks, ProjectTiles::threads, shared_bytes, stream, args, tiles,
                                      access_of(args), tiling, LookBack<Map>::at(workspace, tiling));
  if (launched != cudaSuccess) return launched;
  const Beyond<Scalar> beyond = {args.T,
                                 args.N,
                                 args.H,
                                 args.lengths,
                                 args.outputs.spikes,
                                 args.outputs.membrane,
                                 args.initial_membrane,
                                 args.outputs.final_membrane};
  return fill_beyond(beyond, stream);
}

}  // namespace leakypar::cuda
