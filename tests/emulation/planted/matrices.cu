// The matrix instructions against their definition, on products of distinct small whole numbers, which are exact in every
// operand type. The tables below are the PTX manual's figures, written out for each register.
#include "cuda/matrix.cuh"
#include "harness.h"

namespace {

using leakypar::bfloat16;
using leakypar::float16;
using leakypar::cuda::Fragment;
using leakypar::cuda::shared_memory;

template <typename Scalar>
constexpr int depth = 32 / static_cast<int>(sizeof(Scalar));  // of k

template <typename Scalar>
Fragment pack(const Scalar* values) {
  Fragment bits;
  std::memcpy(&bits, values, sizeof bits);
  return bits;
}

// a [16, depth], b [8, depth] with k contiguous, out [16, 8]. Lane 4 g + t takes its registers where the figures put them:
//
//   a: rows g, g + 8, g, g + 8 and k from w t, w t, h + w t, h + w t       b: column g and k from w t, h + w t
//   c: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
//
// where w is the values in a register (2 or 1) and h half the depth.
template <typename Scalar>
__global__ void multiply_by_figure(float* out, const Scalar* a, const Scalar* b) {
  constexpr int k = depth<Scalar>, w = 4 / static_cast<int>(sizeof(Scalar)), h = k / 2;
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const Fragment left[4] = {pack(a + g * k + w * t), pack(a + (g + 8) * k + w * t), pack(a + g * k + h + w * t),
                            pack(a + (g + 8) * k + h + w * t)};
  const Fragment right[2] = {pack(b + g * k + w * t), pack(b + g * k + h + w * t)};
  float c[4] = {0.5f, 0.5f, 0.5f, 0.5f};
  leakypar::cuda::multiply(Scalar(), c, left, right);
  out[g * 8 + 2 * t] = c[0];
  out[g * 8 + 2 * t + 1] = c[1];
  out[(g + 8) * 8 + 2 * t] = c[2];
  out[(g + 8) * 8 + 2 * t + 1] = c[3];
}

// The same with the registers loaded by ldmatrix: a as four matrices, b as the first two of four.
template <typename Scalar>
__global__ void multiply_by_load(float* out, const Scalar* a, const Scalar* b) {
  constexpr int k = depth<Scalar>;
  auto* rows = static_cast<unsigned char*>(shared_memory());  // [16 + 16][32 bytes], the last 8 unwritten
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < 16) std::memcpy(rows + lane * 32, a + lane * k, 32);
  if (lane < 8) std::memcpy(rows + (16 + lane) * 32, b + lane * k, 32);
  __syncwarp();
  Fragment left[4], right[4];
  leakypar::cuda::load_matrices(left, rows + lane % 16 * 32 + lane / 16 * 16);
  leakypar::cuda::load_matrices(right, rows + (16 + lane % 8 + lane / 16 * 8) * 32 + lane / 8 % 2 * 16);
  const Fragment first[2] = {right[0], right[1]};
  float c[4] = {0.5f, 0.5f, 0.5f, 0.5f};
  leakypar::cuda::multiply(Scalar(), c, left, first);
  const int g = lane / 4, t = lane % 4;
  out[g * 8 + 2 * t] = c[0];
  out[g * 8 + 2 * t + 1] = c[1];
  out[(g + 8) * 8 + 2 * t] = c[2];
  out[(g + 8) * 8 + 2 * t + 1] = c[3];
}

template <typename Scalar, auto Kernel>
void run_multiply() {
  constexpr int k = depth<Scalar>;
  planted::Array<Scalar> a(16 * k), b(8 * k);
  planted::Array<float> out(16 * 8);
  const auto a_at = [](int m, int i) { return static_cast<float>(m * k + i - 100); };  // distinct
  const auto b_at = [](int n, int i) { return static_cast<float>(i * 8 + n - 60); };
  for (int i = 0; i < k; ++i) {
    for (int m = 0; m < 16; ++m) a[m * k + i] = leakypar::narrow<Scalar>(a_at(m, i));
    for (int n = 0; n < 8; ++n) b[n * k + i] = leakypar::narrow<Scalar>(b_at(n, i));
  }
  planted::launch(Kernel, 1, 32, 32 * 32, out.data(), a.data(), b.data());
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      float sum = 0.5f;
      for (int i = 0; i < k; ++i) sum += a_at(m, i) * b_at(n, i);
      planted::expect(out[m * 8 + n] == sum, "the product", m * 8 + n);
    }
  }
  out.print();
}

// Lane 4 r + t gets bytes 4 t to 4 t + 3 of row r of each matrix.
__global__ void load(unsigned* out) {
  auto* words = static_cast<unsigned*>(shared_memory());  // [4 matrices][8 rows][4]
  for (int i = 0; i < 4; ++i) words[i * 32 + threadIdx.x] = i * 32 + threadIdx.x;
  __syncwarp();
  Fragment to[4];
  leakypar::cuda::load_matrices(to, words + threadIdx.x * 4);
  for (int i = 0; i < 4; ++i) out[i * 32 + threadIdx.x] = to[i];
}

void run_load() {
  planted::Array<unsigned> out(128);
  planted::launch(load, 1, 32, 512, out.data());
  for (int i = 0; i < 128; ++i) planted::expect(out[i] == static_cast<unsigned>(i), "the word of the matrix", i);
  out.print();
}

// TF32 keeps eleven significant bits. What is not rounded before the product is cut off by it; rounding goes to nearest,
// ties away from zero, and leaves infinity and NaN what they are.
__global__ void multiply_tf32(float* out, float value, bool rounded) {
  Fragment bits = __float_as_uint(value);
  if (rounded) bits = leakypar::cuda::round_to_tf32(bits);
  const bool corner = threadIdx.x == 0;
  const Fragment a[4] = {corner ? bits : 0u, 0, 0, 0}, b[2] = {corner ? __float_as_uint(1.0f) : 0u, 0};
  float c[4] = {};
  leakypar::cuda::multiply(float(), c, a, b);
  if (corner) *out = c[0];
}

void run_tf32() {
  planted::Array<float> out(1);
  const auto through = [&](float value, bool rounded) {
    planted::launch(multiply_tf32, 1, 32, 0, out.data(), value, rounded);
    return out[0];
  };
  constexpr float ulp = 1.0f / 1024;  // of TF32 at 1
  planted::expect(through(1 + 0.75f * ulp, false) == 1, "what exceeds eleven bits to be cut off");
  planted::expect(through(1 + 0.75f * ulp, true) == 1 + ulp, "the nearest number of eleven bits");
  planted::expect(through(1 + 0.25f * ulp, true) == 1, "the nearest number of eleven bits");
  planted::expect(through(1 + 0.5f * ulp, true) == 1 + ulp, "a tie to go away from zero");
  planted::expect(through(-1 - 0.5f * ulp, true) == -1 - ulp, "a tie to go away from zero");
  planted::expect(through(INFINITY, true) == INFINITY, "infinity to stay");
  planted::expect(std::isnan(through(NAN, true)), "NaN to stay");
}

template <int Threads>
__global__ void multiply_some(float* out) {
  if (threadIdx.x >= Threads) return;
  const Fragment a[4] = {}, b[2] = {};
  float c[4] = {};
  leakypar::cuda::multiply(bfloat16(), c, a, b);
  *out = c[0];
}

template <int Threads, int Block>
void run_some() {
  planted::Array<float> out(1);
  planted::launch(multiply_some<Threads>, 1, Block, 0, out.data());
}

const planted::Register registered[] = {
    {"multiply-bfloat16", run_multiply<bfloat16, multiply_by_figure<bfloat16>>},
    {"multiply-float16", run_multiply<float16, multiply_by_figure<float16>>},
    {"multiply-tf32", run_multiply<float, multiply_by_figure<float>>},
    {"multiply-loaded-bfloat16", run_multiply<bfloat16, multiply_by_load<bfloat16>>},
    {"multiply-loaded-float16", run_multiply<float16, multiply_by_load<float16>>},
    {"multiply-loaded-tf32", run_multiply<float, multiply_by_load<float>>},
    {"load-matrices", run_load},
    {"round-to-tf32", run_tf32},
    {"multiply-without-a-lane", run_some<31, 32>},
    {"multiply-in-a-short-warp", run_some<20, 20>},
};

}  // namespace
