// What lies beyond each sequence's own steps, after a scan of either direction or project_scan has passed it by:
//
//   zeros[t, n] = 0     membrane[t, n] = that after the sequence's last step     for t from its own steps to T
//
// and of a sequence without any steps, the carry out is the carry in.
//
// Mapping. A thread owns a channel, neighbours in memory are neighbours in a warp, and blocks share out the steps.
//
// Bytes moved: what is written, and for each block and channel one membrane that is read.
//
// schedule fill_beyond_kernel<*>: divisions = 0, spills = 0
#include "../kernels.h"
#include "channels.cuh"
#include "launch.cuh"

namespace leakypar::cuda {
namespace {

constexpr int threads = 256;
constexpr std::int64_t shared_steps = 32;  // of a block, but where the grid would grow too large

template <typename Scalar>
__global__ void __launch_bounds__(threads)
    fill_beyond_kernel(const Beyond<Scalar> args, const NeuronOf neuron_of, const unsigned column_blocks,
                       const unsigned time_blocks) {
  const std::int64_t M = args.N * args.H;
  const unsigned time_block = blockIdx.x / column_blocks;
  const std::int64_t column =
      static_cast<std::int64_t>(blockIdx.x - time_block * column_blocks) * threads + threadIdx.x;
  if (column >= M) return;
  const std::int64_t steps = args.lengths.steps(neuron_of.sequence(column), args.T);
  State<Scalar> carry = 0;
  if (steps == 0 && args.carry_in != nullptr) carry = args.carry_in[column];
  if (steps == 0 && args.carry_out != nullptr && time_block == 0) args.carry_out[column] = carry;
  Scalar held = narrow<Scalar>(carry);
  if (steps > 0 && args.membrane != nullptr) held = args.membrane[(steps - 1) * M + column];
#pragma unroll 1  // else the steps are counted first, by a 64-bit division
  for (std::int64_t t = steps + time_block; t < args.T; t += time_blocks) {
    if (args.zeros != nullptr) args.zeros[t * M + column] = narrow<Scalar>(State<Scalar>(0));
    if (args.membrane != nullptr) args.membrane[t * M + column] = held;
  }
}

}  // namespace

template <typename Scalar>
cudaError_t fill_beyond(const Beyond<Scalar>& args, cudaStream_t stream) {
  if (args.lengths.length == nullptr) return cudaSuccess;
  const std::int64_t column_blocks = (args.N * args.H + threads - 1) / threads;
  const std::int64_t wanted = (args.T + shared_steps - 1) / shared_steps;
  const std::int64_t time_blocks = wanted < 1024 ? wanted : 1024;
  return launch(&fill_beyond_kernel<Scalar>, column_blocks * time_blocks, threads, 0, stream, args, NeuronOf(args.H),
                static_cast<unsigned>(column_blocks), static_cast<unsigned>(time_blocks));
}

template cudaError_t fill_beyond(const Beyond<float>&, cudaStream_t);
template cudaError_t fill_beyond(const Beyond<double>&, cudaStream_t);
template cudaError_t fill_beyond(const Beyond<float16>&, cudaStream_t);
template cudaError_t fill_beyond(const Beyond<bfloat16>&, cudaStream_t);

}  // namespace leakypar::cuda
