// What the kernels compute, as plain C++: the argument structs and every launcher. No torch here.
//
//   T  time steps        N  batch        C  input features        H  neurons
//
// Arrays are contiguous with the last dimension fastest. A channel is one neuron of one batch row: there are M = N * H
// of them, and an array [T, N, H] is a matrix of T rows and M columns. Offsets are 64-bit: T * N * H may exceed 2^31.
//
//   u_t = W x_t                                        the projection: by a product before a scan, or by project_scan
//   h_t = clamp(w h_{t-1} + u_t + b_ih + b_hh)         membrane, between its bounds; h_0 = initial_membrane
//   S_t = gain * 1[f_t h_t - threshold > 0]            spike; f_t is 1, or the factor of dropout
#pragma once

#include <cstdint>
#include <functional>

#include "math/bounds.h"
#include "math/dropout.h"
#include "math/lengths.h"
#include "math/scalar.h"
#include "math/surrogate.h"
#include "plan/project.h"

#ifdef LEAKYPAR_WITH_CUDA
#include <cuda_runtime.h>
#endif

namespace leakypar {

// One value per neuron, read where it lies: a [H] vector, the diagonal of a matrix (stride H + 1) or a scalar
// (stride 0), in any element type. A null pointer is an absent bias, read as zero.
struct Parameter {
  const void* data;
  DType dtype;
  std::int64_t stride;  // in elements
};

struct Neurons {
  Parameter decay, bias_ih, bias_hh, threshold, gain;
  Bounds bounds;  // of every membrane; where it was rounded to an element, the backward rounds them too
};

// What a forward writes. A null pointer is an output that nobody asked for.
template <typename Scalar>
struct Outputs {
  Scalar* spikes;                 // [T, N, H]
  Scalar* membrane;               // [T, N, H], before dropout
  State<Scalar>* final_membrane;  // [N, H], after the last step, not rounded to the element type
};

// Projected is the element type that the products leave u in, and take its gradient in. Few CPUs multiply 16-bit matrices at
// speed: there it may be the state type.
template <typename Scalar, typename Projected = Scalar>
struct ScanForward {
  std::int64_t T, N, H;
  const Projected* u;  // [T, N, H]; may be the array that spikes or membrane is written to
  Neurons neurons;
  const State<Scalar>* initial_membrane;  // [N, H], or null for zeros; may be the array of the final membrane
  Outputs<Scalar> outputs;
  Dropout dropout;
  Lengths lengths;
};

// With v = f_t h_t - threshold, and r the gradient that reaches h_t from later steps (r_T = grad_final_membrane):
//
//   g_t = f_t dL/dS_t gain surrogate'(v) + dL/dh_t     d_u[t] = 1[lower < h_t < upper] (g_t + r_t)     r_{t-1} = w d_u[t]
//
// The sums run over a channel's time steps; the caller adds up their leading dimensions.
//
//   sum_bias = sum d_u[t]                              sum_decay = sum d_u[t] h_{t-1}
//   sum_threshold = -sum dL/dS_t gain surrogate'(v)    sum_gain = sum dL/dS_t 1[v > 0]
template <typename Scalar, typename Projected = Scalar>
struct ScanBackward {
  std::int64_t T, N, H;
  const Scalar* grad_spikes;                 // [T, N, H], or null
  const Scalar* grad_membrane;               // [T, N, H], or null
  const State<Scalar>* grad_final_membrane;  // [N, H], or null
  const Scalar* membrane;                    // [T, N, H]
  const State<Scalar>* initial_membrane;     // [N, H], or null for zeros
  Neurons neurons;                           // the biases are not read
  Surrogate surrogate;
  Dropout dropout;
  Lengths lengths;
  Projected* grad_u;                     // [T, N, H]; on the CPU, may be the array that the membrane is read from
  State<Scalar>* grad_initial_membrane;  // [N, H], or null: r_0; may be the array that grad_final_membrane is read from
  // Partial sums, each [tiles, N, H] or null where no gradient needs it; what they hold is added to, so that a sequence can
  // be taken in pieces. The sequential CUDA scan has a tile for every summed_steps (plan/scan.h), the look-back scan
  // TimeTiling::tiles(T) of them, the CPU one.
  State<Scalar>* sum_bias;
  State<Scalar>* sum_decay;
  State<Scalar>* sum_threshold;
  State<Scalar>* sum_gain;
};

// What a scan leaves to be filled where sequences end before the arrays do; neither a gradient nor a spike is there.
template <typename Scalar>
struct Beyond {
  std::int64_t T, N, H;
  Lengths lengths;
  Scalar* zeros;                  // [T, N, H], or null: the spikes, or the gradient of u
  Scalar* membrane;               // [T, N, H], or null
  const State<Scalar>* carry_in;  // [N, H], or null for zeros: the membrane before the first step, or r_T
  State<Scalar>* carry_out;       // [N, H], or null: the final membrane, or r_0; may be the array of the carry in
};

// Packs x into the bits of events (math/event_bits.h), which is promised to be zeros and one other value. Where it is not, or
// that value is not finite, what is left for it is NaN.
template <typename Scalar>
struct PackEvents {
  std::int64_t T, N, C;
  std::int64_t x_step, x_row;  // elements between time steps, and between batch rows
  const Scalar* x;             // [T, N, C], the last dimension contiguous
  std::uint8_t* bits;          // [T, N, 8 words]
  Scalar* value;               // [1], zero where there is no event
};

template <typename Scalar>
struct UnpackEvents {
  std::int64_t rows, C;
  const std::uint8_t* bits;  // [rows, 8 words]
  const Scalar* value;       // [1]
  Scalar* x;                 // [rows, C]
};

// The projection, the scan and the spike at once: from the input to the spikes, and u nowhere.
template <typename Scalar>
struct ProjectScan {
  std::int64_t T, N, C, H;
  const Scalar* x;             // [T, N, C], the last dimension contiguous
  std::int64_t x_step, x_row;  // elements between time steps, and between batch rows
  const Scalar* weight;        // [H, C], the last dimension contiguous
  std::int64_t weight_row;     // elements between neurons
  Neurons neurons;
  const State<Scalar>* initial_membrane;  // [N, H], or null for zeros; may be the array of the final membrane
  Outputs<Scalar> outputs;
  Dropout dropout;
  Lengths lengths;
};

namespace cpu {

// The caller's threads: parallel_for(count, grain, body) runs body(begin, end) over a partition of [0, count) whose parts
// have at least `grain`, the last excepted.
struct Threads {
  int count;
  std::function<void(std::int64_t count, std::int64_t grain,
                     const std::function<void(std::int64_t, std::int64_t)>& body)>
      parallel_for;
};

template <typename Scalar, typename Projected>
void scan_forward(const ScanForward<Scalar, Projected>& args, const Threads& threads);

template <typename Scalar, typename Projected>
void scan_backward(const ScanBackward<Scalar, Projected>& args, const Threads& threads);

}  // namespace cpu

#ifdef LEAKYPAR_WITH_CUDA
namespace cuda {

// Device bytes that a scan needs beside its arguments; zero for the sequential one. The launchers clear what they need.
// method: sequential or look_back.
template <typename Scalar>
std::int64_t scan_forward_workspace(const ScanForward<Scalar>& args, Method method);
template <typename Scalar>
std::int64_t scan_backward_workspace(const ScanBackward<Scalar>& args, Method method);

template <typename Scalar>
cudaError_t scan_forward(const ScanForward<Scalar>& args, Method method, void* workspace, cudaStream_t stream);
template <typename Scalar>
cudaError_t scan_backward(const ScanBackward<Scalar>& args, Method method, void* workspace, cudaStream_t stream);

// Fills what lies beyond each sequence's own steps; the launchers above and below do, where there are lengths.
template <typename Scalar>
cudaError_t fill_beyond(const Beyond<Scalar>& args, cudaStream_t stream);

template <typename Scalar>
cudaError_t pack_events(const PackEvents<Scalar>& args, cudaStream_t stream);
template <typename Scalar>
cudaError_t unpack_events(const UnpackEvents<Scalar>& args, cudaStream_t stream);

// Scalar: float16, bfloat16, or float, whose operands are rounded to TF32.
template <typename Scalar>
std::int64_t project_scan_workspace(const ProjectScan<Scalar>& args, const ProjectTiles& tiles);
template <typename Scalar>
cudaError_t project_scan(const ProjectScan<Scalar>& args, const ProjectTiles& tiles, void* workspace,
                         cudaStream_t stream);

}  // namespace cuda
#endif

}  // namespace leakypar
