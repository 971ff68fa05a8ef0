// The algebra that makes a clipped recurrence a scan, for every decay w.
//
// One step of the membrane, h' = clamp(w h + u, lower, upper), clamps an affine map; so do n steps, and so do pieces in a
// row. Bounds of (0, inf) are relu, of (-inf, inf) none. Let F be the map of n steps. Its affine part is w^n h + b, which is
// of no use where w^n overflows: b then overflows too, and the sign of their sum is lost. The decay is one number a neuron
// for all time, so each has the form that converges:
//
//   |w| <= 1     F(h) = clamp(w^n h + offset)         offset = sum_j u_j w^(n-j)         j = 1 ... n
//   |w| >  1     F(h) = clamp(w^n (h + offset))       offset = sum_j u_j w^-j
//
// w^n is not stored: it is the same for every piece of n steps. First n1 steps, then n2:
//
//   |w| <= 1     offset = w^n2 offset1 + offset2      |w| >  1     offset = offset1 + w^-n1 offset2
//
// F is monotone, so what it clamps to are its limits, and composing them is applying F2:
//
//   below = F(-inf) = F2(below1)       above = F(+inf) = F2(above1)       clamp(v) lies between the two, in either order
//
// The limits are walked step by step as the membrane is, so that they are exactly what the membrane is where a bound has
// stopped it once.
//
// Error. Let e be the unit roundoff (2^-24 in float32). However n steps are cut and associated, the result is the exact
// one of a carry and inputs that are each off by a relative (4 n + 16) e, and by one subnormal: the steps one by one
// give that of inputs off by some 2 e a step. So it differs from theirs by what they lose themselves, but for a factor:
//
//   |w| <  1     (4 n + 16) e (|w^n h| + sum_j |w|^(n-j) |u_j|) at most, and never more than the bounds let through
//   |w| >  1     where h + offset cancels, the membrane sits on an unstable fixed point: an error of the first step has
//                grown by w^n in either computation, and they may part. Everywhere else a bound or infinity decides, as
//                it does step by step. Above 2^126 the reciprocal is subnormal, and inputs are off by up to 2^-22.
//
// This holds wherever no step's membrane, from this carry, and no partial sum passes the largest number. A membrane that
// becomes infinite stays so, with one exception: where it does so and a number as large and negative follows within the
// same piece, the map has forgotten that it did.
//
// Infinity and NaN. Inputs, carries and decays may be either, and F then gives what the steps give:
//
//   an input of either makes F constant for finite carries. Then the limits are equal, or one is NaN (infinity minus
//   infinity, which no finite carry meets), and the offset, of whatever value, counts for nothing; or both are NaN
//   an infinite carry gives a limit, a carry of NaN gives NaN
//   w = 0: no finite carry matters, an infinite one gives NaN; `below` is walked from 0
//   w infinite: positive carries give `above`, negative ones `below`, and 0 gives NaN
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <limits>

#include "bounds.h"

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
LEAKYPAR_HOST_DEVICE bool is_finite(Real value) {
  return std::fabs(value) <= Limits<Real>::max;
}

// One step of the membrane.
template <typename Real, typename Clip>
LEAKYPAR_HOST_DEVICE Real membrane_step(Real decay, Real h, Real u, const Clip& clip) {
  return clip(decay * h + u);
}

template <typename Real>
LEAKYPAR_HOST_DEVICE bool grows(Real decay) {
  return std::fabs(decay) > Real(1);
}

// w^n as third^2 rest. Numbers reach from the least subnormal to the largest, twice the range of an exponent, and a power
// may carry one end to the other: that takes three factors. They stop short of 0 and infinity, so that times() of zero is
// zero and of infinity is infinity, unless the decay is 0 or infinite itself. (Four steps have no even thirds: there, of
// decays above 2^64 alone, subnormal values grow too little.)
template <typename Real>
struct Power {
  Real third, rest;
  bool grows;

  static LEAKYPAR_HOST_DEVICE Power of(Real decay, std::int64_t n) {
    if (decay == Real(0) || !is_finite(decay)) {
      return {Real(1), n % 2 != 0 ? decay : decay * decay, leakypar::grows(decay)};
    }
    const std::int64_t part = (n + 1) / 3;
    return {bounded_power(decay, part), bounded_power(decay, n - 2 * part), leakypar::grows(decay)};
  }

  LEAKYPAR_HOST_DEVICE Real times(Real value) const { return value * rest * third * third; }

 private:
  static LEAKYPAR_HOST_DEVICE Real bounded(Real value) {
    constexpr Real least = std::numeric_limits<Real>::denorm_min();
    const Real magnitude = std::fmin(std::fmax(std::fabs(value), least), Limits<Real>::max);
    return std::copysign(magnitude, value);
  }

  static LEAKYPAR_HOST_DEVICE Real bounded_power(Real base, std::int64_t n) {
    Real result = Real(1);
    for (; n > 0; n /= 2) {
      if (n % 2 != 0) result = bounded(result * base);
      base = bounded(base * base);
    }
    return result;
  }
};

// The map of some steps of one decay.
template <typename Real>
struct ClampAffine {
  Real offset, below, above;

  // One step. A run of more goes on with then() for every further step, and, where the decay grows, takes the offset
  // anew: from the last step to the first, from_last(1 / decay, u) on an offset of 0.
  template <typename Clip>
  static LEAKYPAR_HOST_DEVICE ClampAffine first(Real decay, Real u, const Clip& clip) {
    constexpr Real infinity = std::numeric_limits<Real>::infinity();
    const Real lowest = decay == Real(0) ? Real(0) : -infinity;
    return {u, membrane_step(decay, lowest, u, clip), membrane_step(decay, infinity, u, clip)};
  }

  template <typename Clip>
  LEAKYPAR_HOST_DEVICE void then(Real decay, Real u, const Clip& clip) {
    offset = decay * offset + u;
    below = membrane_step(decay, below, u, clip);
    above = membrane_step(decay, above, u, clip);
  }

  // The terms of a sum from the last on: a power that underflows multiplies nothing that it should not.
  LEAKYPAR_HOST_DEVICE void from_last(Real reciprocal, Real u) { offset = reciprocal * (u + offset); }

  // power: of the decay, to as many steps as this is the map of.
  LEAKYPAR_HOST_DEVICE Real operator()(Real h, const Power<Real>& power) const {
    if (!is_finite(h) || !is_finite(power.rest)) {
      if (h != h || h == Real(0)) return h * power.rest;  // of 0 and infinity, NaN
      return h > Real(0) || power.rest == Real(0) ? above : below;
    }
    const Real value = power.grows ? power.times(h + offset) : power.times(h) + offset;
    // Of a number and NaN, fmin and fmax take the number.
    const Real lo = std::fmin(below, above), hi = std::fmax(below, above);
    const Real clamped = std::fmin(std::fmax(value, lo), hi);
    return lo == lo ? clamped : lo;
  }
};

// then_power: of the decay, to the steps of `then`.
template <typename Real>
LEAKYPAR_HOST_DEVICE ClampAffine<Real> compose(const ClampAffine<Real>& first, std::int64_t first_steps,
                                               const ClampAffine<Real>& then, const Power<Real>& then_power,
                                               Real decay) {
  const Real offset = then_power.grows ? first.offset + Power<Real>::of(Real(1) / decay, first_steps).times(then.offset)
                                       : then_power.times(first.offset) + then.offset;
  return {offset, then(first.below, then_power), then(first.above, then_power)};
}

// The backward recurrence is linear, but for the bounds, which stop it. With r the gradient that reaches h_t from the
// future, one step back is
//
//   d_u = k (g + r),   r' = w d_u,     k = 1[lower < h < upper].
//
// A run of n steps that the bounds let pass, everywhere, is affine; one that it stops somewhere is constant: what lies beyond
// is masked, not multiplied by zero, since it may be infinite or NaN. With j = 1 the first step that is visited,
//
//   passes, |w| <= 1     r' = w^n r + offset          offset = sum_j g_j w^(n-j+1)
//   passes, |w| >  1     r' = w^n (r + offset)        offset = sum_j g_j w^(1-j)
//   is stopped           r' = offset                  what the steps since the last stop give
//
// with the error of the map above, as long as no partial sum passes the largest number.
template <typename Real>
struct Affine {
  Real offset, passes;  // passes is 1 or 0

  static LEAKYPAR_HOST_DEVICE Affine identity() { return {Real(0), Real(1)}; }

  // As ClampAffine's: where the decay grows and the run passes, the offset is taken anew, by from_last.
  LEAKYPAR_HOST_DEVICE void then(Real decay, Real g, bool active) {
    offset = active ? decay * (g + offset) : Real(0);
    passes = active ? passes : Real(0);
  }

  LEAKYPAR_HOST_DEVICE void from_last(Real reciprocal, Real g) { offset = g + reciprocal * offset; }

  LEAKYPAR_HOST_DEVICE Real operator()(Real r, const Power<Real>& power) const {
    if (passes == Real(0)) return offset;
    return power.grows ? power.times(r + offset) : power.times(r) + offset;
  }
};

template <typename Real>
LEAKYPAR_HOST_DEVICE Affine<Real> compose(const Affine<Real>& first, std::int64_t first_steps, const Affine<Real>& then,
                                          const Power<Real>& then_power, Real decay) {
  const Real passes = first.passes * then.passes;
  if (then_power.grows && passes != Real(0)) {
    return {first.offset + Power<Real>::of(Real(1) / decay, first_steps).times(then.offset), passes};
  }
  return {then(first.offset, then_power), passes};
}

}  // namespace leakypar
