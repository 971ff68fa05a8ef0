// The spike, and the derivative that training puts in its place.
//
// A neuron spikes where v = membrane - threshold is above zero, strictly. That step has no useful derivative, so the
// backward pass uses another function of v, the surrogate gradient. Each one here is what snntorch 1.0.0 computes in
// surrogate.py (its code, where its documentation differs), rearranged so that no finite v gives NaN or infinity.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "exponential.h"
#include "scalar.h"

namespace leakypar {

// The numbers are the `kind` of the Python objects in leakypar/surrogate.py.
enum class SurrogateKind : std::int32_t {
  disabled = 0,                    // spikes pass no gradient to the membrane
  atan = 1,                        // p0 = alpha
  fast_sigmoid = 2,                // p0 = slope >= 0
  sigmoid = 3,                     // p0 = slope
  straight_through_estimator = 4,  //
  triangular = 5,                  // p0 = threshold
  heaviside = 6,                   //
  spike_rate_escape = 7,           // p0 = beta >= 0, p1 = slope
  leaky_spike_operator = 8,        // p0 = slope
  sparse_fast_sigmoid = 9,         // p0 = slope >= 0, p1 = B
};

struct Surrogate {
  SurrogateKind kind;
  double p0, p1;
};

template <typename Real>
LEAKYPAR_HOST_DEVICE bool spike(Real v) {
  return v > Real(0);
}

// 1 / d for d >= 1. On a GPU, in float32, the approximate reciprocal and one Newton step: at most one unit in the last
// place from the nearest number, where a division is a call for what it rounds correctly (rcp.approx is within one unit,
// by the PTX manual, and the step squares that error). Above 2^126 the approximation would be zero, and the step NaN.
template <typename Real>
LEAKYPAR_HOST_DEVICE Real reciprocal(Real d) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(Real) == 4) {
    const float bounded = d > 0x1p126f ? 0x1p126f : d;  // a NaN stays
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(bounded));
    return fmaf(r, fmaf(-bounded, r, 1.0f), r);
  }
#endif
  return Real(1) / d;
}

// d/dv of v / (1 + slope |v|) (Zenke and Ganguli 2018). Squaring the reciprocal cannot overflow.
template <typename Real>
LEAKYPAR_HOST_DEVICE Real fast_sigmoid_derivative(Real slope, Real v) {
  const Real r = reciprocal(slope * std::fabs(v) + Real(1));
  return r * r;
}

// The branch is on a kernel argument: every thread takes the same one.
template <typename Real>
LEAKYPAR_HOST_DEVICE Real surrogate_derivative(const Surrogate& surrogate, Real v) {
  const Real p0 = static_cast<Real>(surrogate.p0);
  const Real p1 = static_cast<Real>(surrogate.p1);
  switch (surrogate.kind) {
    case SurrogateKind::disabled:
      break;

    case SurrogateKind::atan: {
      // d/dv of arctan(pi alpha v / 2) / pi (Fang et al. 2021). A square that overflows divides to zero, as it should.
      constexpr Real largest = std::numeric_limits<Real>::max();
      constexpr Real half_pi = Real(1.57079632679489661923);
      // The product of the constants must be a number, or v = 0 gives none.
      const Real x = std::fmax(-largest, std::fmin(half_pi * p0, largest)) * v;
      return Real(0.5) * p0 * reciprocal(Real(1) + x * x);
    }

    case SurrogateKind::fast_sigmoid:
      return fast_sigmoid_derivative(p0, v);

    case SurrogateKind::sigmoid: {
      // d/dv of 1 / (1 + exp(-slope v)) (Zenke and Ganguli 2018). exp(-x) / (1 + exp(-x))^2 is even in x: with |x| the
      // exponential stays in [0, 1], where snntorch's overflows for negative v.
      const Real e = exponential_of_negative(-std::fabs(p0 * v));
      return p0 * e / ((Real(1) + e) * (Real(1) + e));
    }

    case SurrogateKind::straight_through_estimator:
      return Real(1);

    case SurrogateKind::triangular:
      return v >= Real(0) ? -p0 : p0;

    case SurrogateKind::heaviside:
      return spike(v) ? Real(1) : Real(0);

    case SurrogateKind::spike_rate_escape:
      // The escape rate of Gerstner and Kistler (2002), centred on v = 1 as in snntorch.
      return p1 * exponential_of_negative(-p0 * std::fabs(v - Real(1)));

    case SurrogateKind::leaky_spike_operator:
      return spike(v) ? Real(1) : p0;

    case SurrogateKind::sparse_fast_sigmoid:
      // Zero at and below B (Perez-Nieves and Goodman 2021).
      return v > p1 ? fast_sigmoid_derivative(p0, v) : Real(0);
  }
  return Real(0);
}

}  // namespace leakypar
