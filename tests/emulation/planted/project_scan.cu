// project_scan itself, over every tiles, against a loop in double precision. The arrays end where their data end.
#include <algorithm>
#include <cmath>
#include <random>

#include "harness.h"
#include "kernels.h"

namespace {

using namespace leakypar;

struct Sizes {
  std::int64_t T, N, C, H;
  std::int64_t x_step_gap = 0, x_row_gap = 0, weight_gap = 0, x_offset = 0;  // elements beside the data
};

struct Options {
  bool initial = true, spikes = true, membrane = true;
  float decay_from = -1.0f, decay_to = 1.0f;
};

// What an operand is rounded to before it is multiplied.
double operand(float value) { return __uint_as_float(leakypar_emulation::round_to_tf32(value)); }
double operand(bfloat16 value) { return widen(value); }
double operand(float16 value) { return widen(value); }

template <typename Value>
planted::Array<Value>& fill(planted::Array<Value>& array, auto draw) {
  for (std::size_t i = 0; i < array.size(); ++i) array[i] = draw(i);
  return array;
}

std::int64_t extent(std::int64_t count, std::int64_t stride, std::int64_t last) {
  return count > 0 ? (count - 1) * stride + last : 0;
}

// One problem: its arrays, and for each step u in double precision with the sum of its terms' magnitudes.
template <typename Scalar>
class Trial {
 public:
  Trial(const Sizes& sizes, const Options& options) : sizes_(sizes), options_(options) {
    const auto [T, N, C, H, x_step_gap, x_row_gap, weight_gap, x_offset] = sizes;
    std::mt19937 generator(static_cast<unsigned>(T * 7919 + N * 104729 + C * 31 + H));
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> uniform(options.decay_from, options.decay_to);
    const float scale = 1.0f / std::sqrt(static_cast<float>(std::max<std::int64_t>(C, 1)));
    fill(x_, [&](std::size_t) { return narrow<Scalar>(normal(generator)); });
    fill(weight_, [&](std::size_t) { return narrow<Scalar>(scale * normal(generator)); });
    fill(bias_, [&](std::size_t) { return 0.2f * normal(generator); });
    fill(decay_, [&](std::size_t h) { return h == 1 ? 0.0f : h == 2 ? 1.0f : uniform(generator); });
    fill(threshold_, [&](std::size_t h) { return 0.3f + 0.1f * static_cast<float>(h % 7); });
    fill(gain_, [&](std::size_t h) { return 1.0f + 0.25f * static_cast<float>(h % 3); });  // exact in 16 bits
    fill(initial_, [&](std::size_t) { return options.initial ? std::fabs(normal(generator)) : 0.0f; });
    for (std::int64_t t = 0; t < T; ++t) {
      for (std::int64_t n = 0; n < N; ++n) {
        for (std::int64_t h = 0; h < H; ++h) {
          const std::int64_t at = (t * N + n) * H + h;
          u_[at] = bias_[h];
          size_[at] = std::fabs(bias_[h]);
          for (std::int64_t c = 0; c < C; ++c) {
            const double term =
                operand(x_[x_offset + t * x_step_ + n * x_row_ + c]) * operand(weight_[h * weight_row_ + c]);
            u_[at] += term;
            size_[at] += std::fabs(term);
          }
        }
      }
    }
  }

  void run(const ProjectTiles& tiles) {
    const auto [T, N, C, H, x_step_gap, x_row_gap, weight_gap, x_offset] = sizes_;
    planted::Array<float> last(N * H);
    planted::Array<Scalar> spikes(T * N * H), membrane(T * N * H);
    const auto parameter = [](planted::Array<float>& values) { return Parameter{values.data(), DType::float32, 1}; };
    ProjectScan<Scalar> args = {};
    args.T = T, args.N = N, args.C = C, args.H = H;
    args.x = x_.data() + x_offset, args.x_step = x_step_, args.x_row = x_row_;
    args.weight = weight_.data(), args.weight_row = weight_row_;
    args.neurons.bias_ih = parameter(bias_);
    args.neurons.decay = parameter(decay_);
    args.neurons.threshold = parameter(threshold_);
    args.neurons.gain = parameter(gain_);
    args.initial_membrane = options_.initial ? initial_.data() : nullptr;
    args.outputs.spikes = options_.spikes ? spikes.data() : nullptr;
    args.outputs.membrane = options_.membrane ? membrane.data() : nullptr;
    args.outputs.final_membrane = last.data();
    planted::Array<unsigned char> workspace(static_cast<std::size_t>(cuda::project_scan_workspace(args, tiles)));
    std::memset(workspace.data(), 0xFF, workspace.size());
    const cudaError_t error = cuda::project_scan(args, tiles, workspace.data(), nullptr);
    planted::expect(error == cudaSuccess, cudaGetErrorString(error), error);

    // Beside the membrane, a bound of the magnitudes that rounding acts on: see rounding_margin in tests/problems.py.
    const double unit = std::ldexp(static_cast<double>(C + 12), -24);
    const double storage = sizeof(Scalar) == 4 ? 0.0 : std::is_same_v<Scalar, bfloat16> ? 0x1p-8 : 0x1p-11;
    for (std::int64_t column = 0; column < N * H; ++column) {
      const std::int64_t h = column % H;
      double state = initial_[column], bound = state, margin = 0.0;
      for (std::int64_t at = column; at < T * N * H; at += N * H) {
        state = std::max(decay_[h] * state + u_[at], 0.0);
        bound = std::fabs(decay_[h]) * bound + size_[at];
        margin = std::fabs(decay_[h]) * margin + unit * bound;
        if (options_.membrane) {
          planted::expect(std::fabs(widen(membrane[at]) - state) <= margin + storage * state, "the membrane", at);
        }
        if (options_.spikes && std::fabs(state - threshold_[h]) > margin) {
          planted::expect(widen(spikes[at]) == (state > threshold_[h] ? gain_[h] : 0.0f), "the spike", at);
        }
      }
      planted::expect(std::fabs(last[column] - state) <= margin, "the last membrane", column);
    }
    membrane.print();
    spikes.print();
    last.print();
  }

 private:
  Sizes sizes_;
  Options options_;
  std::int64_t x_row_ = sizes_.C + sizes_.x_row_gap, x_step_ = sizes_.N * x_row_ + sizes_.x_step_gap;
  std::int64_t weight_row_ = sizes_.C + sizes_.weight_gap;
  planted::Array<Scalar> x_{
      static_cast<std::size_t>(sizes_.x_offset + extent(sizes_.T, x_step_, extent(sizes_.N, x_row_, sizes_.C)))};
  planted::Array<Scalar> weight_{static_cast<std::size_t>(extent(sizes_.H, weight_row_, sizes_.C))};
  planted::Array<float> bias_{static_cast<std::size_t>(sizes_.H)}, decay_{bias_.size()}, threshold_{bias_.size()},
      gain_{bias_.size()}, initial_{static_cast<std::size_t>(sizes_.N * sizes_.H)};
  planted::Array<double> u_{static_cast<std::size_t>(sizes_.T * sizes_.N * sizes_.H)}, size_{u_.size()};
};

template <typename Scalar>
void run_tiles(const Sizes& sizes, const ProjectTiles& tiles, const Options& options) {
  Trial<Scalar>(sizes, options).run(tiles);
}

// Every tile shape; weights that stay and that stream; one block a group and three.
template <typename Scalar>
void run_tiless(const Sizes& sizes) {
  Trial<Scalar> trial(sizes, {});
  const auto slices = static_cast<int>(std::max<std::int64_t>(ProjectTiles::k_slices(sizes.C, sizeof(Scalar)), 1));
  for (const bool wide : {false, true}) {
    for (const int batch_rows : {1, 2, 4, 8}) {
      for (const bool resident : {false, true}) {
        const int stages = std::min(slices, resident ? 2 : 3);
        for (const int blocks : {1, 3}) {
          trial.run({wide, batch_rows, stages, resident, blocks});
        }
      }
    }
  }
}

template <typename Scalar>
void run_ragged() {
  run_tiless<Scalar>({67, 3, 5, 37});
}

template <typename Scalar>
void run_aligned() {
  run_tiless<Scalar>({70, 2, 288 / static_cast<std::int64_t>(sizeof(Scalar)), 136});  // three slices, the last short
}

template <typename Scalar>
void run_strides() {
  const ProjectTiles narrow{false, 2, 2, true, 2};
  const int packet = 16 / static_cast<int>(sizeof(Scalar));
  for (const std::int64_t C : {1, 3, 66, 100, 140}) {
    ProjectTiles tiles = narrow;
    tiles.stages = std::min<std::int32_t>(2, static_cast<std::int32_t>(ProjectTiles::k_slices(C, sizeof(Scalar))));
    run_tiles<Scalar>({40, 3, C, 21}, tiles, {});
    run_tiles<Scalar>({40, 3, C, 24, 1, 0, 1, 0}, tiles, {});
    run_tiles<Scalar>({40, 3, C, 24, 0, 3, 0, 1}, tiles, {});
    run_tiles<Scalar>({40, 3, C, 24, 2, 2, 2, 2}, tiles, {});
    // Rows on 16-byte boundaries, whose last piece is short.
    const std::int64_t gap = (packet - C % packet) % packet;
    run_tiles<Scalar>({40, 3, C, 24, 0, gap, gap, packet}, tiles, {});
  }
}

template <typename Scalar>
void run_options() {
  const ProjectTiles tiles{true, 2, 1, true, 3};
  run_tiles<Scalar>({150, 3, 20, 40}, tiles, {.initial = false});
  run_tiles<Scalar>({150, 3, 20, 40}, tiles, {.spikes = false});
  run_tiles<Scalar>({150, 3, 20, 40}, tiles, {.membrane = false});
  run_tiles<Scalar>({150, 3, 20, 40}, tiles, {.decay_from = -1.05f, .decay_to = 1.05f});
  run_tiles<Scalar>({1, 1, 1, 1}, tiles, {});
  run_tiles<Scalar>({20, 1, 0, 9}, tiles, {});
}

// Many tiles in time, more than a look-back sees at once.
void run_long() {
  run_tiles<bfloat16>({40 * 64, 1, 8, 16}, {false, 1, 1, true, 5}, {.decay_from = 0.9f, .decay_to = 1.0f});
  run_tiles<bfloat16>({40 * 8, 8, 8, 16}, {false, 8, 1, true, 40}, {.decay_from = 0.9f, .decay_to = 1.0f});
}

const planted::Register registered[] = {
    {"project-ragged-bfloat16", run_ragged<bfloat16>},
    {"project-ragged-float16", run_ragged<float16>},
    {"project-ragged-tf32", run_ragged<float>},
    {"project-aligned-bfloat16", run_aligned<bfloat16>},
    {"project-aligned-tf32", run_aligned<float>},
    {"project-strides-bfloat16", run_strides<bfloat16>},
    {"project-strides-tf32", run_strides<float>},
    {"project-options-bfloat16", run_options<bfloat16>},
    {"project-options-float16", run_options<float16>},
    {"project-options-tf32", run_options<float>},
    {"project-long", run_long},
};

}  // namespace
