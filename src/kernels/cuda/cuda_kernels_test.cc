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
                 bool bias = false,
                 const std::string& mode = "affine") {
  Linear linear =
      test_layers::quantized(rows, columns, bits, group, dtype, mode);
  if (bias) linear.bias = random({rows}, dtype);
  return linear;
}

// The same matrix, not quantized: MLX compiles its quantized products for most
// of a minute.
Linear wide(const Linear& linear) {
  Linear result{dequantized_weight(linear)};
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
    std::string mode = "affine";
  };
  for (const Case& each : {Case{mx::bfloat16, 4, 32, {1, 2, 3, 8, 13}, "mxfp4"},
                           Case{mx::float16, 4, 32, {1}, "mxfp4"},
                           Case{mx::bfloat16, 4, 16, {1, 5, 8, 16}, "nvfp4"},
                           Case{mx::float16, 4, 16, {3}, "nvfp4"},
                           Case{mx::bfloat16, 8, 32, {1, 8}, "mxfp8"},
                           Case{mx::float16, 8, 32, {2}, "mxfp8"},
                           Case{mx::bfloat16, 4, 64, {1, 2, 3, 8, 13, 200}},
                           Case{mx::bfloat16, 4, 32, {1}},
                           Case{mx::bfloat16, 4, 128, {5}},
                           Case{mx::bfloat16, 8, 32, {5}},
                           Case{mx::bfloat16, 8, 64, {1}},
                           Case{mx::bfloat16, 8, 128, {1}},
                           Case{mx::float16, 4, 64, {1}},
                           Case{mx::float16, 8, 64, {5}}}) {
    for (int rows : each.rows) {
      const int columns = 5 * 128;
      const Linear a = quantized(
          40, columns, each.bits, each.group, each.dtype, false, each.mode);
      const Linear b = quantized(
          17, columns, each.bits, each.group, each.dtype, true, each.mode);
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
            << each.mode << ", " << each.bits << " bits, group " << each.group
            << ", " << rows << " rows";
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

// Columns that end within a warp's batch, and that need several chunks.
TEST_F(CudaKernels, GatedProductsOfSmallFloats) {
  for (auto [mode, bits, group] : {std::tuple{"mxfp4", 4, 32},
                                   std::tuple{"nvfp4", 4, 16},
                                   std::tuple{"mxfp8", 8, 32}}) {
    for (int columns : {32, 352, 18432 + 32}) {
      for (int rows : {1, 6}) {
        const Linear gate =
            quantized(72, columns, bits, group, mx::bfloat16, false, mode);
        const Linear up =
            quantized(72, columns, bits, group, mx::bfloat16, true, mode);
        auto x = random({1, rows, columns}, mx::bfloat16, 0.1f);
        auto got =
            cuda_.norm_gated_mlp(x, nullptr, &gate, up, Activation::silu);
        const Linear wide_gate = wide(gate);
        auto want = reference_.norm_gated_mlp(
            wide(x), nullptr, &wide_gate, wide(up), Activation::silu);
        EXPECT_LT(error_of(got, want), kTolerance)
            << mode << ", " << rows << " rows of " << columns;
      }
    }
  }
}

TEST_F(CudaKernels, GatedProducts) {
  for (Activation activation : {Activation::silu,
                                Activation::gelu,
                                Activation::gelu_tanh,
                                Activation::gelu_fast,
                                Activation::relu,
                                Activation::relu_squared}) {
    for (int rows : {1, 16, 300}) {
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

// Formats and numbers of rows of the kernel for many; outputs that end within a
// tile, few ones (whose tiles are cut) and many.
TEST_F(CudaKernels, ManyRows) {
  struct Case {
    mx::Dtype dtype;
    int bits;
    int group;
    int rows;
    int outputs;
    int columns;
  };
  for (const Case& each : {Case{mx::bfloat16, 4, 64, 8, 1000, 1024},
                           Case{mx::bfloat16, 4, 64, 8, 40000, 256},
                           Case{mx::bfloat16, 4, 32, 13, 515, 512},
                           Case{mx::bfloat16, 4, 128, 32, 256, 4096},
                           Case{mx::bfloat16, 4, 64, 300, 700, 1280},
                           Case{mx::bfloat16, 8, 64, 50, 30000, 512},
                           Case{mx::bfloat16, 8, 32, 128, 300, 768},
                           Case{mx::float16, 4, 64, 9, 512, 1024},
                           Case{mx::float16, 8, 128, 65, 100, 1024}}) {
    const Linear a = quantized(
        each.outputs, each.columns, each.bits, each.group, each.dtype, true);
    const Linear b =
        quantized(264, each.columns, each.bits, each.group, each.dtype);
    const Norm norm{.weight = random({each.columns}, each.dtype), .eps = 1e-5f};
    auto x = random({1, each.rows, each.columns}, each.dtype);
    auto got = cuda_.norm_linear(x, &norm, std::vector{&a, &b});
    const Linear wide_a = wide(a);
    const Linear wide_b = wide(b);
    const Norm wide_norm = wide(norm);
    auto want = reference_.norm_linear(
        wide(x), &wide_norm, std::vector{&wide_a, &wide_b});
    auto residual = random({1, each.rows, each.outputs}, each.dtype);
    auto wide_residual = wide(residual);
    got.push_back(cuda_.linear_residual(x, a, nullptr, &residual, 0.5f));
    want.push_back(reference_.linear_residual(
        wide(x), wide_a, nullptr, &wide_residual, 0.5f));
    for (std::size_t i = 0; i < got.size(); ++i) {
      EXPECT_LT(error_of(got[i], want[i]), kTolerance)
          << each.bits << " bits, group " << each.group << ", " << each.rows
          << " rows, " << each.outputs << " outputs, product " << i;
    }
  }
}

TEST_F(CudaKernels, GatedProductsOfManyRows) {
  for (auto [rows, outputs] : {std::pair{8, 1000}, {40, 20000}, {200, 264}}) {
    const Linear gate = quantized(outputs, 512, 4, 64, mx::bfloat16, true);
    const Linear up = quantized(outputs, 512, 4, 64, mx::bfloat16);
    const Norm norm{.weight = random({512}, mx::bfloat16), .eps = 1e-6f};
    auto x = random({1, rows, 512}, mx::bfloat16, 0.3f);
    auto got = cuda_.norm_gated_mlp(x, &norm, &gate, up, Activation::silu);
    const Linear wide_gate = wide(gate);
    const Norm wide_norm = wide(norm);
    auto want = reference_.norm_gated_mlp(
        wide(x), &wide_norm, &wide_gate, wide(up), Activation::silu);
    EXPECT_LT(error_of(got, want), kTolerance) << rows << " rows";
  }
}

TEST_F(CudaKernels, NormsAndRopesOfHeads) {
  for (auto [size, rotated, traditional, freqs] :
       {std::tuple{128, 128, false, false},
        {64, 32, true, false},
        {96, 96, false, true},
        {256, 64, false, false}}) {
    const Linear q = quantized(3 * size, 512, 4, 64, mx::bfloat16);
    const Linear k = quantized(2 * size, 512, 4, 64, mx::bfloat16, true);
    const Linear v = quantized(2 * size, 512, 4, 64, mx::bfloat16);
    const Norm norm{.weight = random({512}, mx::bfloat16), .eps = 1e-5f};
    const Norm q_norm{.weight = random({size}, mx::bfloat16), .eps = 1e-6f};
    Rope rope{.dimensions = rotated, .traditional = traditional};
    rope.scale = 0.5f;
    rope.input_scale = 1.2f;
    if (freqs)
      rope.freqs = mx::add(random({rotated / 2}, mx::float32), mx::array(3.0f));
    const std::vector<HeadProjection> projections{{&q, 3, &q_norm, &rope},
                                                  {&k, 2, nullptr, &rope},
                                                  {&v, 2, nullptr, nullptr}};
    const Linear wide_q = wide(q);
    const Linear wide_k = wide(k);
    const Linear wide_v = wide(v);
    const Norm wide_norm = wide(norm);
    const Norm wide_q_norm = wide(q_norm);
    const std::vector<HeadProjection> wide_projections{
        {&wide_q, 3, &wide_q_norm, &rope},
        {&wide_k, 2, nullptr, &rope},
        {&wide_v, 2, nullptr, nullptr}};
    const std::vector<TokenRun> runs{{2, 7}, {1, 1000}, {3, 0}, {1, 300}};
    auto x = random({1, 7, 512}, mx::bfloat16);
    auto got = norm_heads(cuda_, x, &norm, projections, Positions(runs));
    auto want = norm_heads(
        reference_, wide(x), &wide_norm, wide_projections, Positions(runs));
    for (int i : {0, 1, 2}) {
      EXPECT_LT(error_of(got[i], want[i]), kTolerance) << size << ", " << i;
    }
  }
}

TEST_F(CudaKernels, Logits) {
  for (auto [rows, size] : {std::pair{1, 128256}, {3, 1000}, {1, 2}, {2, 7}}) {
    auto x = random({rows, 1, size}, mx::float32, 5.0f);
    EXPECT_LT(error_of(cuda_.log_softmax(x), reference_.log_softmax(x)), 1e-5f)
        << size;
    auto got = cuda_.argmax(x);
    EXPECT_EQ(got.shape(), (mx::Shape{rows, 1}));
    EXPECT_TRUE(mx::array_equal(got, reference_.argmax(x)).item<bool>())
        << size;
    // The first of equal ones.
    auto coarse = mx::round(mx::multiply(x, mx::array(0.3f)));
    EXPECT_TRUE(mx::array_equal(cuda_.argmax(coarse), reference_.argmax(coarse))
                    .item<bool>())
        << size;
  }
}

TEST_F(CudaKernels, AttentionOfRows) {
  for (auto [heads, kv_heads, size] : {std::tuple{32, 8, 128},
                                       {9, 3, 64},
                                       {4, 4, 128},
                                       {8, 2, 256},
                                       {14, 2, 64}}) {
    for (const auto& all_keys : {std::vector{1},
                                 std::vector{64},
                                 std::vector{65, 1, 700},
                                 std::vector{63, 2000, 1, 64, 3}}) {
      const int num_rows = static_cast<int>(all_keys.size());
      auto q = random({1, heads, num_rows, size}, mx::bfloat16);
      auto k = random({1, kv_heads, num_rows, size}, mx::bfloat16);
      auto v = random({1, kv_heads, num_rows, size}, mx::bfloat16);
      std::vector<BatchRow> rows;
      for (int keys : all_keys) {
        const mx::Shape shape{1, kv_heads, keys + 5, size};
        rows.push_back({.keys = random(shape, mx::bfloat16),
                        .values = random(shape, mx::bfloat16),
                        .at = keys - 1,
                        .num_keys = keys});
        mx::eval(rows.back().keys, rows.back().values);
      }
      AttentionParameters parameters{.scale = 1 / std::sqrt(float(size))};
      for (bool sinks : {false, true}) {
        if (sinks) parameters.sinks = random({heads}, mx::float32);
        for (float softcap : {0.0f, 2.0f}) {
          parameters.softcap = softcap;
          auto made = cuda_.append_rows(q, k, v, rows, parameters);
          ASSERT_TRUE(made.has_value());
          mx::eval(made->out);
          for (int i = 0; i < num_rows; ++i) {
            auto own = [&](const mx::array& x) {
              return wide(mx::slice(
                  x, {0, 0, i, 0}, {1, x.shape(1), i + 1, x.shape(3)}));
            };
            auto want = append_attention(reference_,
                                         own(q),
                                         own(k),
                                         own(v),
                                         wide(rows[i].keys),
                                         wide(rows[i].values),
                                         rows[i].at,
                                         rows[i].num_keys,
                                         parameters);
            EXPECT_LT(error_of(own(made->out), want.out), kTolerance)
                << heads << " heads, " << rows[i].num_keys << " keys, row " << i
                << " of " << num_rows;
            EXPECT_EQ(error_of(rows[i].keys, want.keys), 0);
            EXPECT_EQ(error_of(rows[i].values, want.values), 0);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace mlxlm::kernels
