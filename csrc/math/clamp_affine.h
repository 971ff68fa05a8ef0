// The algebra that makes a clipped recurrence a scan.
//
// One time step of the membrane, h' = relu(w h + u), is a clamp of an affine map,
//
//   f(h) = clamp(a h + b, lo, hi)      with a = w, b = u, lo = 0, hi = +max.
//
// Such maps are closed under composition for every sign of a. First f1, then f2:
//
//   a  = a2 a1                         p = a2 lo1 + b2,  q = a2 hi1 + b2
//   b  = a2 b1 + b2                    lo = clamp(min(p, q), lo2, hi2)
//                                      hi = clamp(max(p, q), lo2, hi2)
//
// Composition is associative with identity (1, 0, -max, +max). Infinity is the largest finite number and every result
// saturates there: w = 0 is legal, and 0 * infinity would be NaN. A NaN input does stay NaN: each clamp is written as
// two comparisons, which a NaN fails, so it passes through as it passes through torch's relu.
#pragma once

#include <cfloat>

#include "scalar.h"

namespace leakypar {

template <typename Real>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float max = FLT_MAX;
};
template <>
struct Limits<double> {
  static constexpr double max = DBL_MAX;
};

template <typename Real>
LEAKYPAR_HOST_DEVICE Real clamp(Real value, Real lo, Real hi) {
  return value < lo ? lo : (value > hi ? hi : value);
}

template <typename Real>
LEAKYPAR_HOST_DEVICE Real saturate(Real value) {
  return clamp(value, -Limits<Real>::max, Limits<Real>::max);
}

template <typename Real>
struct ClampAffine {
  Real a, b, lo, hi;

  static LEAKYPAR_HOST_DEVICE ClampAffine identity() {
    return {Real(1), Real(0), -Limits<Real>::max, Limits<Real>::max};
  }

  // The step h' = relu(decay h + u).
  static LEAKYPAR_HOST_DEVICE ClampAffine step(Real decay, Real u) { return {decay, u, Real(0), Limits<Real>::max}; }

  LEAKYPAR_HOST_DEVICE Real operator()(Real h) const { return clamp(a * h + b, lo, hi); }
};

template <typename Real>
LEAKYPAR_HOST_DEVICE ClampAffine<Real> compose(const ClampAffine<Real>& first, const ClampAffine<Real>& then) {
  const Real p = saturate(then.a * first.lo + then.b);
  const Real q = saturate(then.a * first.hi + then.b);
  const bool ordered = !(q < p);
  return {
      saturate(then.a * first.a),
      saturate(then.a * first.b + then.b),
      clamp(ordered ? p : q, then.lo, then.hi),
      clamp(ordered ? q : p, then.lo, then.hi),
  };
}

// One step of the membrane, computed directly: the same function as ClampAffine::step(decay, u)(h), without its upper
// clamp, which no finite membrane reaches.
template <typename Real>
LEAKYPAR_HOST_DEVICE Real membrane_step(Real decay, Real h, Real u) {
  const Real value = decay * h + u;
  return value <= Real(0) ? Real(0) : value;
}

// A run of steps of one decay, step by step: cheaper than composing their maps, with the same meaning. A step is monotone,
// so the image of [lo, hi] lies between the images of its ends, and which of the two is the lower one turns with the sign
// of the decay: the ends are carried along, and ordered when the run is over. Nor is saturating each step needed: what
// overflows stays infinite, of whichever sign, since its decay is not zero; it is saturated when the run is over.
template <typename Real>
struct Run {
  Real b, p, q;

  static LEAKYPAR_HOST_DEVICE Run first(Real u) { return {u, Real(0), Limits<Real>::max}; }

  LEAKYPAR_HOST_DEVICE void then(Real decay, Real u) {
    b = decay * b + u;
    p = membrane_step(decay, p, u);
    q = membrane_step(decay, q, u);
  }

  // power: decay to the number of steps.
  LEAKYPAR_HOST_DEVICE ClampAffine<Real> map(Real power) const {
    const bool ordered = !(q < p);
    return {power, saturate(b), saturate(ordered ? p : q), saturate(ordered ? q : p)};
  }
};

// The backward recurrence is linear. With r the gradient that reaches h_t from the future, one step back is
//
//   d_u = k (g + r),   r' = w d_u,     k = 1[h > 0],
//
// so r' = a r + b with a = w k and b = w k g, and a run of steps composes to one such map.
template <typename Real>
struct Affine {
  Real a, b;

  static LEAKYPAR_HOST_DEVICE Affine identity() { return {Real(1), Real(0)}; }

  LEAKYPAR_HOST_DEVICE Real operator()(Real r) const { return a * r + b; }
};

template <typename Real>
LEAKYPAR_HOST_DEVICE Affine<Real> compose(const Affine<Real>& first, const Affine<Real>& then) {
  return {then.a * first.a, then.a * first.b + then.b};
}

}  // namespace leakypar
