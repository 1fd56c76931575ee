// The fused operations, those on logits, and fast mode.
#include <limits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "kernels/cpu/cpu_test_support.h"
#include "kernels/cpu/pack.h"
#include "kernels/seam.h"
#include "kernels/tables.h"

namespace mlxlm::kernels {
namespace {

using cpu_test::CpuKernels;
using cpu_test::dense;
using cpu_test::error_of;
using cpu_test::quantized;
using cpu_test::random;

constexpr float kTolerance = 2e-5f;

class CpuLayer : public CpuKernels {};

TEST_F(CpuLayer, HeadsWithNormsAndRopes) {
  Norm first{NormKind::rms, random({32}), std::nullopt, 1e-6f};
  Norm per_head{NormKind::rms, random({12}), std::nullopt, 1e-6f};
  Norm whole{NormKind::rms, random({36}), std::nullopt, 1e-6f};
  Rope rope{.dimensions = 12};
  Rope partial{.dimensions = 8, .traditional = true};
  Linear q = quantized(36, 32, 4, 32);
  Linear k = dense(36, 32, mx::float32, /*bias=*/true);
  Linear v = quantized(24, 32, 8, 32);
  const HeadProjection projections[] = {{&q, 3, &per_head, &rope},
                                        {&k, 3, &whole, &partial},
                                        {&v, 2, nullptr, nullptr}};
  for (int batch : {1, 2}) {
    for (int tokens : {1, 2, 19}) {
      auto x = random({batch, tokens, 32});
      auto actual = norm_heads(cpu_, x, &first, projections, 5);
      auto expected = norm_heads(reference_, x, &first, projections, 5);
      for (int i : {0, 1, 2}) {
        EXPECT_LT(error_of(actual[i], expected[i]), 1e-4f)
            << tokens << " tokens, projection " << i;
      }
    }
  }
}

// Rows of a batch: each run of tokens has positions of its own.
TEST_F(CpuLayer, HeadsAtSeveralRunsOfPositions) {
  Norm norm{NormKind::rms, random({12}), std::nullopt, 1e-6f};
  Rope rope{.dimensions = 12};
  Linear q = quantized(36, 32, 4, 32);
  const HeadProjection projections[] = {{&q, 3, &norm, &rope}};
  const std::vector<TokenRun> runs{{1, 70}, {4, 0}, {1, 3}, {2, 1000}};
  auto x = random({1, 8, 32});
  auto together = norm_heads(cpu_, x, nullptr, projections, Positions(runs))[0];
  EXPECT_LT(
      error_of(
          together,
          norm_heads(reference_, x, nullptr, projections, Positions(runs))[0]),
      1e-4f);
  int first = 0;
  for (const auto& [count, offset] : runs) {
    auto part = mx::slice(x, {0, first, 0}, {1, first + count, 32});
    auto alone = norm_heads(reference_, part, nullptr, projections, offset)[0];
    EXPECT_LT(
        error_of(
            mx::slice(together, {0, 0, first, 0}, {1, 3, first + count, 12}),
            alone),
        1e-4f);
    first += count;
  }
}

TEST_F(CpuLayer, TheEndOfALayer) {
  Norm norm{NormKind::rms, random({40}), std::nullopt, 1e-6f};
  Linear out = quantized(40, 96, 4, 32);
  Linear gate = dense(64, 40, mx::bfloat16);
  Linear up = dense(64, 40, mx::float32, /*bias=*/true);
  Linear down = quantized(40, 64, 6, 32);
  for (bool gated : {true, false}) {
    for (bool normed : {true, false}) {
      LayerEnd end{.out = &out,
                   .out_norm = normed ? &norm : nullptr,
                   .mlp_norm = normed ? &norm : nullptr,
                   .gate = gated ? &gate : nullptr,
                   .up = &up,
                   .down = &down,
                   .down_norm = normed ? &norm : nullptr,
                   .activation = Activation::silu,
                   .scale = 0.5f};
      for (auto [batch, tokens] : {std::pair{1, 1}, {2, 1}, {2, 9}, {1, 600}}) {
        auto heads = random({batch, 3, tokens, 32});
        auto x = random({batch, tokens, 40});
        EXPECT_LT(error_of(finish_layer(cpu_, heads, x, end),
                           finish_layer(reference_, heads, x, end)),
                  5e-5f)
            << batch << " x " << tokens;
      }
    }
  }
}

class CpuLayerAppends : public CpuLayer,
                        public testing::WithParamInterface<mx::Dtype> {};

INSTANTIATE_TEST_SUITE_P(OfAllDtypes,
                         CpuLayerAppends,
                         testing::Values(mx::float32, mx::float16));

TEST_P(CpuLayerAppends, RowsAreSeenAndKept) {
  auto buffer = mx::astype(random({2, 2, 40, 16}), GetParam());
  auto values = mx::astype(random({2, 2, 40, 24}), GetParam());
  mx::eval(buffer, values);
  auto own_keys = mx::copy(buffer);
  auto own_values = mx::copy(values);
  AttentionParameters parameters;
  parameters.scale = 0.25f;
  int used = 3;
  for (int tokens : {1, 5, 1, 1, 20}) {
    auto q = random({2, 6, tokens, 16});
    auto k = random({2, 2, tokens, 16});
    auto v = random({2, 2, tokens, 24});
    auto actual = append_attention(
        cpu_, q, k, v, own_keys, own_values, used, used + tokens, parameters);
    auto expected = append_attention(
        reference_, q, k, v, buffer, values, used, used + tokens, parameters);
    EXPECT_LT(error_of(actual.out, expected.out), kTolerance) << tokens;
    EXPECT_TRUE(mx::array_equal(actual.keys, expected.keys).item<bool>());
    EXPECT_TRUE(mx::array_equal(actual.values, expected.values).item<bool>());
    own_keys = actual.keys;
    own_values = actual.values;
    buffer = expected.keys;
    values = expected.values;
    used += tokens;
  }
}

TEST_F(CpuLayer, AppendingToABufferThatLiesOtherwise) {
  // Token by token: [B, T, H, D] seen as [B, H, T, D].
  auto keys = mx::transpose(random({1, 8, 2, 4}), {0, 2, 1, 3});
  auto values = mx::transpose(random({1, 8, 2, 4}), {0, 2, 1, 3});
  auto q = random({1, 2, 1, 4});
  auto k = random({1, 2, 1, 4});
  auto actual = append_attention(cpu_, q, k, k, keys, values, 5, 6, {});
  auto expected = append_attention(reference_, q, k, k, keys, values, 5, 6, {});
  EXPECT_LT(error_of(actual.out, expected.out), kTolerance);
  EXPECT_TRUE(mx::array_equal(actual.keys, expected.keys).item<bool>());
}

TEST_F(CpuLayer, QuantizedCachesOfAllBits) {
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (auto [queries, keys] : {std::pair{1, 1}, {1, 700}, {70, 600}}) {
      auto quantize_rows = [&](int num_keys) {
        auto parts = mx::quantize(random({2, 2, num_keys + 9, 64}), 32, bits);
        auto first = [&](const mx::array& x) {
          auto stop = x.shape();
          stop[2] = num_keys;
          return mx::slice(x, {0, 0, 0, 0}, stop);
        };
        return QuantizedTensor{
            first(parts[0]), first(parts[1]), first(parts[2]), 32, bits};
      };
      auto q = random({2, 6, queries, 64});
      auto k = quantize_rows(keys);
      auto v = quantize_rows(keys);
      AttentionParameters parameters;
      parameters.scale = 0.2f;
      for (bool masked : {false, true}) {
        if (masked) {
          parameters.mask =
              causal_mask(queries, keys, keys - queries, /*window=*/30);
        }
        EXPECT_LT(error_of(cpu_.quantized_attention(q, k, v, parameters),
                           reference_.quantized_attention(q, k, v, parameters)),
                  5e-5f)
            << bits << " bits, " << keys << " keys";
      }
    }
  }
}

// As formats have it that know scales only: they are packed without zeros.
void put_zeros_in_the_middle(Linear& linear) {
  const auto middle = -static_cast<float>(1 << (linear.bits - 1));
  linear.zeros =
      mx::multiply(*linear.scales, mx::array(middle, linear.scales->dtype()));
}

TEST_F(CpuLayer, MatricesWithoutZerosTakeLessMemory) {
  Linear linear = quantized(32, 64, 4, 32, mx::float16);
  const auto all = cpu::packed(linear)->nbytes();
  EXPECT_EQ(all, 32 * 64 / 2 + 32 * 2 * 2 * 2);
  Linear without = quantized(32, 64, 4, 32, mx::float16);
  put_zeros_in_the_middle(without);
  EXPECT_EQ(cpu::packed(without)->nbytes(), all - 32 * 2 * 2);
}

TEST_F(CpuLayer, PreparedWeightsComeBackAsTheyWere) {
  auto same = [](const mx::array& a, const mx::array& b) {
    return a.dtype() == b.dtype() && mx::array_equal(a, b).item<bool>();
  };
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
      for (bool zeros : {true, false}) {
        Linear linear = quantized(37, 64, bits, 32, dtype);
        if (!zeros) put_zeros_in_the_middle(linear);
        const Linear before = linear;
        cpu_.prepare(linear);
        EXPECT_NE(linear.weight.id(), before.weight.id());
        EXPECT_TRUE(same(linear.weight, before.weight)) << bits;
        EXPECT_TRUE(same(*linear.scales, *before.scales)) << bits;
        EXPECT_TRUE(same(*linear.zeros, *before.zeros)) << bits;
      }
    }
  }
  for (auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    Linear linear = dense(19, 33, dtype);
    auto before = linear.weight;
    cpu_.prepare(linear);
    EXPECT_TRUE(same(linear.weight, before));
  }
  Linear stack = cpu_test::quantize(random({3, 20, 64}), 4, 32);
  auto before = stack.weight;
  cpu_.prepare(stack);
  EXPECT_TRUE(same(stack.weight, before));
  for (auto [mode, group] : {std::pair{"mxfp4", 32}, {"nvfp4", 16}}) {
    Linear floating = quantized(37, 64, 4, group, mx::float32, mode);
    const Linear as_it_was = floating;
    cpu_.prepare(floating);
    EXPECT_NE(floating.weight.id(), as_it_was.weight.id());
    EXPECT_TRUE(same(floating.weight, as_it_was.weight)) << mode;
    EXPECT_TRUE(same(*floating.scales, *as_it_was.scales)) << mode;
  }
  // Floats of 8 bits stay.
  Linear floating = quantized(16, 64, 8, 32, mx::float32, "mxfp8");
  before = floating.weight;
  cpu_.prepare(floating);
  EXPECT_EQ(floating.weight.id(), before.id());
}

// Scales are packed in the shortest dtype that holds all of a matrix's.
TEST_F(CpuLayer, ScalesOfAllLengthsComeBackAsTheyWere) {
  const float halves[] = {0.0f,
                          -0.0f,
                          65504.0f,
                          -0.1f,
                          0x1p-14f,
                          0x1p-24f,
                          0x3ffp-24f,
                          -0x1.ffcp-15f};
  for (float odd : {1.0f, 0x1p-25f, 0x1.004p-15f, 65536.0f, 1e-30f, 1.001f}) {
    auto scales = mx::astype(
        mx::astype(mx::array(std::begin(halves), {8, 1}), mx::float16),
        mx::float32);
    auto zeros = mx::multiply(mx::ones({8, 1}), mx::array(odd));
    Linear linear = quantized(8, 32, 4, 32);
    linear.scales = scales;
    linear.zeros = zeros;
    cpu_.prepare(linear);
    for (auto [before, after] :
         {std::pair(scales, *linear.scales), std::pair(zeros, *linear.zeros)}) {
      EXPECT_TRUE(mx::array_equal(mx::view(before, mx::uint32),
                                  mx::view(after, mx::uint32))
                      .item<bool>())
          << odd;
    }
  }
}

TEST_F(CpuLayer, RowsOfPreparedTables) {
  auto tokens = mx::array({3, 0, 18, 3}, {2, 2});
  for (int bits : {3, 4, 8}) {
    Linear table = quantized(19, 64, bits, 32);
    auto expected = mx::take(
        mx::dequantize(table.weight, *table.scales, table.zeros, 32, bits),
        tokens,
        0);
    cpu_.prepare(table);
    EXPECT_LT(error_of(cpu_.embed(table, tokens), expected), 1e-6f);
  }
  Linear table = dense(19, 7, mx::bfloat16);
  auto expected = mx::astype(mx::take(table.weight, tokens, 0), mx::float32);
  cpu_.prepare(table);
  EXPECT_EQ(error_of(cpu_.embed(table, tokens), expected), 0.0f);
  // What is outside reads nothing.
  auto stray = cpu_.embed(table, mx::array({19, -20}));
  EXPECT_TRUE(mx::array_equal(stray, mx::zeros_like(stray)).item<bool>());
}

TEST_F(CpuLayer, LogSoftmaxAndArgmax) {
  for (int size : {1, 7, 8192, 20001}) {
    auto x = random({2, size}, 5.0f);
    EXPECT_LT(error_of(cpu_.log_softmax(x), reference_.log_softmax(x)),
              kTolerance)
        << size;
    EXPECT_TRUE(
        mx::array_equal(cpu_.argmax(x), reference_.argmax(x)).item<bool>())
        << size;
  }
  // The first of equals, and infinities.
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(cpu_.argmax(mx::array({1.0f, 3.0f, 3.0f, -inf})).item<int>(), 1);
  EXPECT_EQ(cpu_.argmax(mx::array({-inf, -inf})).item<int>(), 0);
  auto masked = cpu_.log_softmax(mx::array({0.0f, -inf, 0.0f}));
  EXPECT_TRUE(mx::allclose(mx::exp(masked), mx::array({0.5f, 0.0f, 0.5f}))
                  .item<bool>());
}

// A mode for a scope.
struct InMode {
  CpuMode before = cpu_mode();
  explicit InMode(CpuMode mode) { set_cpu_mode(mode); }
  ~InMode() { set_cpu_mode(before); }
};

// x [1, M, K] as the fastest mode rounds it.
mx::array in_8_bits(const mx::array& x, int group) {
  auto groups = mx::reshape(x, {-1, group});
  auto step = mx::divide(mx::max(mx::abs(groups), -1, /*keepdims=*/true),
                         mx::array(127.0f));
  auto whole = mx::round(mx::divide(groups, step));
  return mx::reshape(mx::multiply(whole, step), x.shape());
}

TEST_F(CpuLayer, FastProductsOfAllBitsAndGroups) {
  InMode fast(CpuMode::fast);
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int group : {32, 64, 128}) {
      for (auto dtype : {mx::float32, mx::bfloat16, mx::float16}) {
        Linear linear = quantized(37, 3 * group, bits, group, dtype);
        if (dtype == mx::float16) put_zeros_in_the_middle(linear);
        const std::vector<const Linear*> linears{&linear};
        for (int rows : {1, 2, 3, 4, 5, 8, 9, 12, 25}) {
          auto x = random({1, rows, 3 * group});
          EXPECT_LT(error_of(cpu_.norm_linear(x, nullptr, linears)[0],
                             reference_.norm_linear(x, nullptr, linears)[0]),
                    1e-3f)
              << bits << " bits, group " << group << ", " << rows << " rows";
        }
      }
    }
  }
}

TEST_F(CpuLayer, FastestProductsAreThoseOfRoundedActivations) {
  InMode fastest(CpuMode::fastest);
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int group : {32, 64, 128}) {
      Linear linear = quantized(37, 3 * group, bits, group, mx::float16);
      if (bits != 4) put_zeros_in_the_middle(linear);
      const std::vector<const Linear*> linears{&linear};
      for (int rows : {1, 2, 3, 4, 5, 8, 9, 25}) {
        auto x = random({1, rows, 3 * group});
        EXPECT_LT(error_of(cpu_.norm_linear(x, nullptr, linears)[0],
                           reference_.norm_linear(
                               in_8_bits(x, group), nullptr, linears)[0]),
                  1e-3f)
            << bits << " bits, group " << group << ", " << rows << " rows";
      }
    }
  }
}

TEST_F(CpuLayer, FastProductsOfMixedLayers) {
  InMode fast(CpuMode::fast);
  Linear a = quantized(20, 128, 4, 32);
  Linear b = dense(33, 128, mx::bfloat16, /*bias=*/true);
  Linear c = quantized(16, 128, 8, 64);
  const std::vector<const Linear*> linears{&a, &b, &c};
  for (int rows : {1, 6}) {
    auto x = random({1, rows, 128});
    auto actual = cpu_.norm_linear(x, nullptr, linears);
    auto expected = reference_.norm_linear(x, nullptr, linears);
    for (int i : {0, 1, 2}) {
      EXPECT_LT(error_of(actual[i], expected[i]), 1e-3f) << i;
    }
  }
}

TEST_F(CpuLayer, FastProductsOfExtremeActivations) {
  InMode fast(CpuMode::fast);
  Linear linear = quantized(16, 64, 4, 32);
  const std::vector<const Linear*> linears{&linear};
  auto product = [&](const mx::array& x) {
    return cpu_.norm_linear(x, nullptr, linears)[0];
  };
  auto zeros = product(mx::zeros({1, 1, 64}));
  EXPECT_TRUE(mx::array_equal(zeros, mx::zeros_like(zeros)).item<bool>());
  // Too small to have an inverse: they count as zeros.
  auto tiny = product(random({1, 3, 64}, 1e-38f));
  EXPECT_LT(mx::max(mx::abs(tiny)).item<float>(), 1e-35f);
  for (float scale : {1e-20f, 1e20f}) {
    auto x = random({1, 3, 64}, scale);
    auto back = mx::array(1.0f / scale);
    EXPECT_LT(
        error_of(
            mx::multiply(product(x), back),
            mx::multiply(reference_.norm_linear(x, nullptr, linears)[0], back)),
        1e-3f)
        << scale;
  }
}

}  // namespace
}  // namespace mlxlm::kernels
