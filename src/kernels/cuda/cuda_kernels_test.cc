// NVIDIA's kernels against the reference in float32, over shapes that don't fit
// tiles and batches.
#include <cmath>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "kernels/seam.h"
#include "kernels/tables.h"
#include "kernels/test_layers.h"

namespace mlxlm::kernels {
namespace {

class CudaKernels : public testing::Test {
 protected:
  void SetUp() override {
    if (!cuda_table_usable()) GTEST_SKIP() << "there is no NVIDIA GPU";
    mx::random::seed(7);
  }

  const Table& cuda_ = cuda_table();
  const Table& reference_ = reference_table();
};

mx::array random(mx::Shape shape, mx::Dtype dtype, float scale = 1.0f) {
  return mx::astype(test_layers::random(std::move(shape), scale), dtype);
}

mx::array wide(const mx::array& x) { return mx::astype(x, mx::float32); }

Linear quantized(int rows,
                 int columns,
                 int bits,
                 int group,
                 mx::Dtype dtype,
                 bool bias = false) {
  Linear linear = test_layers::quantized(rows, columns, bits, group, dtype);
  if (bias) linear.bias = random({rows}, dtype);
  return linear;
}

// The same matrix with float32 scales, for a reference without rounding.
Linear wide(const Linear& linear) {
  Linear result = linear;
  result.scales = wide(*linear.scales);
  result.zeros = wide(*linear.zeros);
  if (linear.bias) result.bias = wide(*linear.bias);
  return result;
}

Norm wide(const Norm& norm) {
  Norm result = norm;
  result.weight = wide(*norm.weight);
  return result;
}

// The largest difference, relative to the value and the root mean square of
// all.
float error_of(const mx::array& actual, const mx::array& expected) {
  EXPECT_EQ(actual.shape(), expected.shape());
  auto difference = mx::abs(mx::subtract(wide(actual), expected));
  auto size = mx::sqrt(mx::mean(mx::square(expected)));
  return mx::max(mx::divide(difference, mx::add(mx::abs(expected), size)))
      .item<float>();
}

// A few roundings to 8 bits of fraction.
constexpr float kTolerance = 0.03f;

// Each combination of format and power of two of rows is compiled anew, which
// takes about a second: all formats with few rows, all rows with one format.
TEST_F(CudaKernels, NormsAndProjections) {
  struct Case {
    mx::Dtype dtype;
    int bits;
    int group;
    std::vector<int> rows;
  };
  for (const Case& each : {Case{mx::bfloat16, 4, 64, {1, 2, 3, 8, 13, 200}},
                           Case{mx::bfloat16, 4, 32, {1}},
                           Case{mx::bfloat16, 4, 128, {5}},
                           Case{mx::bfloat16, 8, 32, {5}},
                           Case{mx::bfloat16, 8, 64, {1}},
                           Case{mx::bfloat16, 8, 128, {1}},
                           Case{mx::float16, 4, 64, {1}},
                           Case{mx::float16, 8, 64, {5}}}) {
    for (int rows : each.rows) {
      const int columns = 5 * 128;
      const Linear a =
          quantized(40, columns, each.bits, each.group, each.dtype);
      const Linear b =
          quantized(17, columns, each.bits, each.group, each.dtype, true);
      const Norm norm{.weight = random({columns}, each.dtype), .eps = 1e-5f};
      auto x = random({1, rows, columns}, each.dtype);
      auto got = cuda_.norm_linear(x, &norm, std::vector{&a, &b});
      const Linear wide_a = wide(a);
      const Linear wide_b = wide(b);
      const Norm wide_norm = wide(norm);
      auto want = reference_.norm_linear(
          wide(x), &wide_norm, std::vector{&wide_a, &wide_b});
      for (int i : {0, 1}) {
        EXPECT_LT(error_of(got[i], want[i]), kTolerance)
            << each.bits << " bits, group " << each.group << ", " << rows
            << " rows";
      }
    }
  }
}

TEST_F(CudaKernels, LongRowsInChunks) {
  for (int rows : {1, 8}) {
    const int columns = 18432 + 64;
    const Linear w = quantized(33, columns, 4, 64, mx::bfloat16);
    auto x = random({1, rows, columns}, mx::bfloat16);
    auto residual = random({1, rows, 33}, mx::bfloat16);
    auto got = cuda_.linear_residual(x, w, nullptr, &residual, 0.5f);
    const Linear wide_w = wide(w);
    auto wide_residual = wide(residual);
    auto want = reference_.linear_residual(
        wide(x), wide_w, nullptr, &wide_residual, 0.5f);
    EXPECT_LT(error_of(got, want), kTolerance) << rows << " rows";
  }
}

TEST_F(CudaKernels, GatedProducts) {
  for (Activation activation : {Activation::silu,
                                Activation::gelu,
                                Activation::gelu_tanh,
                                Activation::gelu_fast,
                                Activation::relu,
                                Activation::relu_squared}) {
    for (int rows : {1, 300}) {
      const Linear gate = quantized(72, 320, 4, 64, mx::bfloat16);
      const Linear up = quantized(72, 320, 4, 64, mx::bfloat16);
      const Norm norm{.weight = random({320}, mx::bfloat16), .eps = 1e-6f};
      auto x = random({1, rows, 320}, mx::bfloat16, 0.3f);
      auto got = cuda_.norm_gated_mlp(x, &norm, &gate, up, activation);
      const Linear wide_gate = wide(gate);
      const Norm wide_norm = wide(norm);
      auto want = reference_.norm_gated_mlp(
          wide(x), &wide_norm, &wide_gate, wide(up), activation);
      EXPECT_LT(error_of(got, want), kTolerance) << rows << " rows";
    }
  }
}

TEST_F(CudaKernels, DecodeAttention) {
  for (auto [heads, kv_heads, size] : {std::tuple{32, 8, 128},
                                       {9, 3, 64},
                                       {4, 4, 128},
                                       {8, 2, 256},
                                       {14, 2, 64}}) {
    for (int keys : {1, 63, 64, 65, 700}) {
      for (int rows : {1, 3}) {
        auto q = random({rows, heads, 1, size}, mx::bfloat16);
        auto cache = random({2, rows, kv_heads, keys + 5, size}, mx::bfloat16);
        auto part =
            mx::slice(cache, {0, 0, 0, 0, 0}, {2, rows, kv_heads, keys, size});
        auto k = mx::squeeze(
            mx::slice(part, {0, 0, 0, 0, 0}, {1, rows, kv_heads, keys, size}),
            0);
        auto v = mx::squeeze(
            mx::slice(part, {1, 0, 0, 0, 0}, {2, rows, kv_heads, keys, size}),
            0);
        AttentionParameters parameters{.scale = 1 / std::sqrt(float(size))};
        for (bool sinks : {false, true}) {
          if (sinks) parameters.sinks = random({heads}, mx::float32);
          for (float softcap : {0.0f, 2.0f}) {
            if (softcap > 0 && (sinks || heads != 32)) continue;
            parameters.softcap = softcap;
            auto got = cuda_.attention(q, k, v, parameters);
            auto want =
                reference_.attention(wide(q), wide(k), wide(v), parameters);
            EXPECT_LT(error_of(got, want), kTolerance)
                << heads << " heads, " << keys << " keys, " << rows << " rows";
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace mlxlm::kernels
