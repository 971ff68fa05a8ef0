// The operators torch sees, registered for each device that they were built for.
//
// This folder is where tensors are known: checks and allocation (tensors.h), the vendor's products (products.h), the
// chunked plan of each direction (forward.h, backward.h), and what differs between devices (cpu_device.h, cuda_device.h).
// Only torch's stable ABI is used, so that one binary serves every torch from TORCH_TARGET_VERSION on.
#include <torch/csrc/stable/library.h>

#include "arguments.h"
#include "backward.h"
#include "forward.h"

#ifndef LEAKYPAR_EMULATED
#include "cpu_device.h"
#endif

#ifdef LEAKYPAR_WITH_CUDA
#include "cuda_device.h"
#endif

#ifndef LEAKYPAR_NAMESPACE
#define LEAKYPAR_NAMESPACE leakypar
#define LEAKYPAR_CUDA_KEY CUDA
#endif

namespace {

constexpr char forward_schema[] =
    "forward(Tensor x, Tensor weight, Tensor decay, Tensor? bias_ih, Tensor? bias_hh, Tensor threshold, Tensor gain, "
    "Tensor? initial_membrane, Tensor? lengths, Tensor? seed, float? lower, float? upper, float dropout, int outputs, "
    "bool allow_tf32, "
    "str? method, SymInt? gemm_chunk, int[]? tiles, float? event_rate, bool binary_input) -> "
    "(Tensor spikes, Tensor membrane, Tensor checkpoints, Tensor final_membrane, Tensor event_bits, "
    "Tensor event_value)";

constexpr char layer_schema[] =
    "layer(Tensor x, Tensor weight, Tensor decay, Tensor? bias_ih, Tensor? bias_hh, Tensor threshold, Tensor gain, "
    "Tensor? initial_membrane, Tensor? lengths, Tensor? seed, float? lower, float? upper, float dropout, int "
    "surrogate, float p0, "
    "float p1, int outputs, bool allow_tf32, str? method, SymInt? gemm_chunk, int[]? tiles, float? event_rate, "
    "str? backward_method, int? backward_gemm_chunk, float? backward_event_rate) -> "
    "(Tensor spikes, Tensor membrane, Tensor checkpoints, Tensor final_membrane)";

constexpr char backward_schema[] =
    "backward(Tensor? grad_spikes, Tensor? grad_membrane, Tensor? grad_final_membrane, Tensor? membrane, "
    "Tensor? checkpoints, Tensor? event_bits, Tensor? event_value, Tensor? x, Tensor? weight, Tensor decay, Tensor? "
    "bias_ih, Tensor? bias_hh, "
    "Tensor threshold, Tensor gain, Tensor? initial_membrane, Tensor? lengths, Tensor? seed, float? lower, float? "
    "upper, float dropout, "
    "int surrogate, float p0, float p1, int outputs, bool allow_tf32, str? method, SymInt? gemm_chunk, "
    "float? event_rate, float? backward_event_rate, SymInt? features) -> "
    "(Tensor grad_x, Tensor grad_weight, Tensor grad_decay, Tensor grad_bias, Tensor grad_threshold, Tensor grad_gain, "
    "Tensor grad_initial_membrane)";

}  // namespace

STABLE_TORCH_LIBRARY(LEAKYPAR_NAMESPACE, library) {
  library.def(forward_schema);
  library.def(layer_schema);
  library.def(backward_schema);
}

#ifndef LEAKYPAR_EMULATED
STABLE_TORCH_LIBRARY_IMPL(LEAKYPAR_NAMESPACE, CPU, library) {
  library.impl("forward", TORCH_BOX((&leakypar::checked<&leakypar::forward<leakypar::Cpu>, forward_schema>::call)));
  library.impl("layer", TORCH_BOX((&leakypar::checked<&leakypar::layer<leakypar::Cpu>, layer_schema>::call)));
  library.impl("backward", TORCH_BOX((&leakypar::checked<&leakypar::backward<leakypar::Cpu>, backward_schema>::call)));
}
#endif

#ifdef LEAKYPAR_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(LEAKYPAR_NAMESPACE, LEAKYPAR_CUDA_KEY, library) {
  library.impl("forward", TORCH_BOX((&leakypar::checked<&leakypar::forward<leakypar::Cuda>, forward_schema>::call)));
  library.impl("layer", TORCH_BOX((&leakypar::checked<&leakypar::layer<leakypar::Cuda>, layer_schema>::call)));
  library.impl("backward", TORCH_BOX((&leakypar::checked<&leakypar::backward<leakypar::Cuda>, backward_schema>::call)));
}
#endif
