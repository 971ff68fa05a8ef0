// The maps of csrc/math/clamp_affine.h as a library that Python calls: a sequence is cut into pieces, their maps are composed
// in any association, and the one that is left is applied.
#include <cstdint>
#include <vector>

#include "math/clamp_affine.h"

namespace {

using namespace leakypar;

template <typename Map>
struct Piece {
  Map map;
  std::int64_t steps;
};

template <typename Real>
ClampAffine<Real> forward_map(Real decay, const Clamp<Real>& clip, const Real* u, std::int64_t steps) {
  auto map = ClampAffine<Real>::first(decay, u[0], clip);
  for (std::int64_t t = 1; t < steps; ++t) map.then(decay, u[t], clip);
  if (grows(decay)) {
    map.offset = Real(0);
    for (std::int64_t t = steps - 1; t >= 0; --t) map.from_last(Real(1) / decay, u[t]);
  }
  return map;
}

template <typename Real>
Affine<Real> backward_map(Real decay, const Real* g, const std::uint8_t* active, std::int64_t steps) {
  auto map = Affine<Real>::identity();
  for (std::int64_t t = 0; t < steps; ++t) map.then(decay, g[t], active[t]);
  if (grows(decay) && map.passes != Real(0)) {
    map.offset = Real(0);
    for (std::int64_t t = steps - 1; t >= 0; --t) map.from_last(Real(1) / decay, g[t]);
  }
  return map;
}

// Each merge joins the piece of that number, of those that are left, with the next.
template <typename Map, typename Real>
void composed(std::vector<Piece<Map>> pieces, Real decay, const std::int64_t* merges, const Real* carries,
              std::int64_t count, Real* results) {
  for (std::int64_t left = static_cast<std::int64_t>(pieces.size()); left > 1; --left) {
    const auto first = pieces.begin() + *merges++;
    const Power<Real> power = Power<Real>::of(decay, first[1].steps);
    first[0] = {compose(first[0].map, first[0].steps, first[1].map, power, decay), first[0].steps + first[1].steps};
    pieces.erase(first + 1);
  }
  const Power<Real> power = Power<Real>::of(decay, pieces[0].steps);
  for (std::int64_t i = 0; i < count; ++i) results[i] = pieces[0].map(carries[i], power);
}

template <typename Real>
void forward(Real decay, double lower, double upper, const Real* u, const std::int64_t* lengths, std::int64_t pieces,
             const std::int64_t* merges, const Real* carries, std::int64_t count, Real* results) {
  const auto clip = Clamp<Real>::of({lower, upper});
  std::vector<Piece<ClampAffine<Real>>> maps;
  for (std::int64_t i = 0; i < pieces; u += lengths[i++]) {
    maps.push_back({forward_map(decay, clip, u, lengths[i]), lengths[i]});
  }
  composed(maps, decay, merges, carries, count, results);
}

template <typename Real>
void backward(Real decay, const Real* g, const std::uint8_t* active, const std::int64_t* lengths, std::int64_t pieces,
              const std::int64_t* merges, const Real* carries, std::int64_t count, Real* results) {
  std::vector<Piece<Affine<Real>>> maps;
  for (std::int64_t i = 0; i < pieces; g += lengths[i], active += lengths[i], ++i) {
    maps.push_back({backward_map(decay, g, active, lengths[i]), lengths[i]});
  }
  composed(maps, decay, merges, carries, count, results);
}

}  // namespace

extern "C" {

void forward_float(float decay, double lower, double upper, const float* u, const std::int64_t* lengths,
                   std::int64_t pieces, const std::int64_t* merges, const float* carries, std::int64_t count,
                   float* results) {
  forward(decay, lower, upper, u, lengths, pieces, merges, carries, count, results);
}

void forward_double(double decay, double lower, double upper, const double* u, const std::int64_t* lengths,
                    std::int64_t pieces, const std::int64_t* merges, const double* carries, std::int64_t count,
                    double* results) {
  forward(decay, lower, upper, u, lengths, pieces, merges, carries, count, results);
}

void backward_float(float decay, const float* g, const std::uint8_t* active, const std::int64_t* lengths,
                    std::int64_t pieces, const std::int64_t* merges, const float* carries, std::int64_t count,
                    float* results) {
  backward(decay, g, active, lengths, pieces, merges, carries, count, results);
}

void backward_double(double decay, const double* g, const std::uint8_t* active, const std::int64_t* lengths,
                     std::int64_t pieces, const std::int64_t* merges, const double* carries, std::int64_t count,
                     double* results) {
  backward(decay, g, active, lengths, pieces, merges, carries, count, results);
}
}
