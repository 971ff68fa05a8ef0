// What a membrane is clamped to after every step: h_t = clamp(w h_{t-1} + u_t, lower, upper).
#pragma once

#include <cmath>
#include <limits>

#include "scalar.h"

namespace leakypar {

// What a membrane is held between. A bound that is not there is NaN, which no comparison is true of: that takes no
// instruction, and says of an infinite membrane that no bound has stopped it.
struct Bounds {
  double lower = 0.0, upper = std::numeric_limits<double>::quiet_NaN();

  bool rectify() const { return lower == 0.0 && std::isnan(upper); }
};

// Any bounds, as the state or as the elements that a membrane was rounded to, which a stopped one equals then.
template <typename Real>
struct Clamp {
  Real lower, upper;

  static LEAKYPAR_HOST_DEVICE Clamp of(const Bounds& bounds) {
    return {static_cast<Real>(bounds.lower), static_cast<Real>(bounds.upper)};
  }

  template <typename Scalar>
  static LEAKYPAR_HOST_DEVICE Clamp rounded(const Bounds& bounds) {
    const Clamp exact = of(bounds);
    const auto stored = [](Real bound) { return membrane_in_range<Scalar>(widen(narrow<Scalar>(bound))); };
    return {stored(exact.lower), stored(exact.upper)};
  }

  // In this order of operands NaN stays, and each line is one instruction of an x86.
  LEAKYPAR_HOST_DEVICE Real operator()(Real value) const {
    const Real bounded = lower > value ? lower : value;
    return upper < bounded ? upper : bounded;
  }

  // The derivative at the membrane that this has left: 1 strictly between the bounds, and at NaN.
  // Both comparisons are made: a branch between them would keep a loop from being vectorised.
  LEAKYPAR_HOST_DEVICE bool passes(Real h) const { return !((h <= lower) | (h >= upper)); }
};

// The bounds (0, inf), which need no registers.
template <typename Real>
struct Rectify {
  static LEAKYPAR_HOST_DEVICE Rectify of(const Bounds&) { return {}; }
  template <typename Scalar>
  static LEAKYPAR_HOST_DEVICE Rectify rounded(const Bounds&) {
    return {};
  }
  LEAKYPAR_HOST_DEVICE Real operator()(Real value) const { return value <= Real(0) ? Real(0) : value; }
  LEAKYPAR_HOST_DEVICE bool passes(Real h) const { return !(h <= Real(0)); }
};

}  // namespace leakypar
