// The reference operations against plain loops over doubles.
#include <cmath>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "kernels/seam.h"
#include "kernels/test_layers.h"

namespace mlxlm::kernels {
namespace {

using test_layers::quantize;

const Table& reference() { return *find_table("reference"); }

mx::array random(const mx::Shape& shape, int seed, float scale = 1.0f) {
  return mx::multiply(
      mx::random::normal(shape, mx::float32, 0, 1, mx::random::key(seed)),
      mx::array(scale));
}

std::vector<float> values(const mx::array& a) {
  auto flat = mx::contiguous(mx::astype(mx::flatten(a), mx::float32));
  mx::eval(flat);
  return {flat.data<float>(), flat.data<float>() + flat.size()};
}

void expect_near(const mx::array& actual,
                 const std::vector<double>& expected,
                 double tolerance) {
  auto got = values(actual);
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(got[i], expected[i], tolerance * (1 + std::abs(expected[i])))
        << "at " << i;
  }
}

// x [rows, K] times w [N, K] transposed.
std::vector<double> naive_product(const std::vector<float>& x,
                                  const std::vector<float>& w,
                                  int inner) {
  const std::size_t rows = x.size() / inner;
  const std::size_t outputs = w.size() / inner;
  std::vector<double> y(rows * outputs);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t n = 0; n < outputs; ++n) {
      for (int k = 0; k < inner; ++k) {
        y[r * outputs + n] += double(x[r * inner + k]) * w[n * inner + k];
      }
    }
  }
  return y;
}

Linear dense(const mx::array& weight) { return Linear{.weight = weight}; }

mx::array dequantized(const Linear& linear) {
  return mx::dequantize(linear.weight,
                        *linear.scales,
                        linear.zeros,
                        linear.group_size,
                        linear.bits,
                        linear.mode,
                        linear.global_scale,
                        mx::float32);
}

mx::array project(const mx::array& x, const Linear& linear) {
  const Linear* pointer = &linear;
  return reference().norm_linear(x, nullptr, {&pointer, 1})[0];
}

TEST(ReferenceLinear, DenseOfEveryDtypeAndOddShapes) {
  for (auto [rows, inner, outputs] :
       {std::tuple{1, 1, 1}, {1, 33, 7}, {5, 96, 65}}) {
    for (auto dtype : {mx::float32, mx::bfloat16, mx::float16}) {
      auto x = random({1, rows, inner}, 1);
      auto w = mx::astype(random({outputs, inner}, 2), dtype);
      auto y = project(x, dense(w));
      EXPECT_EQ(y.dtype(), mx::float32);
      expect_near(y, naive_product(values(x), values(w), inner), 1e-4);
    }
  }
}

TEST(ReferenceLinear, QuantizedInEveryModeWidthAndGroup) {
  struct Case {
    const char* mode;
    int bits;
    int group;
  };
  std::vector<Case> cases{{"mxfp4", 4, 32}, {"mxfp8", 8, 32}, {"nvfp4", 4, 16}};
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int group : {32, 64, 128}) cases.push_back({"affine", bits, group});
  }
  for (const auto& c : cases) {
    SCOPED_TRACE(std::string(c.mode) + " " + std::to_string(c.bits) + " " +
                 std::to_string(c.group));
    for (int rows : {1, 3}) {
      auto x = random({1, rows, 256}, 3);
      auto linear = quantize(random({24, 256}, 4), c.bits, c.group, c.mode);
      linear.bias = random({24}, 5);
      auto expected =
          naive_product(values(x), values(dequantized(linear)), 256);
      auto bias = values(*linear.bias);
      for (std::size_t i = 0; i < expected.size(); ++i) {
        expected[i] += bias[i % 24];
      }
      expect_near(project(x, linear), expected, 2e-4);
    }
  }
}

TEST(ReferenceLinear, LowRankAdditionAndRowScale) {
  auto x = random({1, 2, 8}, 1);
  Linear linear = dense(random({6, 8}, 2));
  linear.bias = random({6}, 3);
  auto low_rank = std::make_shared<LowRank>(
      LowRank{random({8, 2}, 4), random({2, 6}, 5), 0.5f, random({6}, 6)});
  linear.low_rank = low_rank;
  auto merged =
      mx::add(linear.weight,
              mx::multiply(mx::transpose(mx::matmul(low_rank->a, low_rank->b)),
                           mx::array(0.5f)));
  auto expected = naive_product(values(x), values(merged), 8);
  auto row_scale = values(*low_rank->row_scale);
  auto bias = values(*linear.bias);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    expected[i] = expected[i] * row_scale[i % 6] + bias[i % 6];
  }
  expect_near(project(x, linear), expected, 1e-4);
}

TEST(ReferenceNorm, RmsAndLayerNormWithAndWithoutWeights) {
  auto x = random({1, 3, 5}, 1, 2.0f);
  auto w = random({5}, 2);
  auto b = random({5}, 3);
  auto xs = values(x);
  auto ws = values(w);
  auto bs = values(b);
  std::vector<double> rms, layer;
  for (int r = 0; r < 3; ++r) {
    const float* row = xs.data() + r * 5;
    double mean = std::accumulate(row, row + 5, 0.0) / 5;
    double squares = 0, variance = 0;
    for (int i = 0; i < 5; ++i) {
      squares += double(row[i]) * row[i] / 5;
      variance += (row[i] - mean) * (row[i] - mean) / 5;
    }
    for (int i = 0; i < 5; ++i) {
      rms.push_back(row[i] / std::sqrt(squares + 1e-5) * ws[i]);
      layer.push_back((row[i] - mean) / std::sqrt(variance + 1e-5) * ws[i] +
                      bs[i]);
    }
  }
  expect_near(
      reference().norm(x, {NormKind::rms, w, std::nullopt, 1e-5f}), rms, 1e-5);
  expect_near(reference().norm(x, {NormKind::layer, w, b, 1e-5f}), layer, 1e-5);
}

double activated(double x, Activation kind) {
  switch (kind) {
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::gelu_tanh:
      return 0.5 * x *
             (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::gelu_fast:
      return x / (1 + std::exp(-1.702 * x));
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::relu_squared:
      return x > 0 ? x * x : 0;
  }
  return 0;
}

TEST(ReferenceMlp, EveryActivationGatedAndPlain) {
  auto x = random({1, 2, 8}, 1);
  auto gate = dense(random({12, 8}, 2));
  auto up = dense(random({12, 8}, 3));
  auto g = naive_product(values(x), values(gate.weight), 8);
  auto u = naive_product(values(x), values(up.weight), 8);
  for (auto kind : {Activation::silu,
                    Activation::gelu,
                    Activation::gelu_tanh,
                    Activation::gelu_fast,
                    Activation::relu,
                    Activation::relu_squared}) {
    std::vector<double> gated(g.size()), plain(g.size());
    for (std::size_t i = 0; i < g.size(); ++i) {
      gated[i] = activated(g[i], kind) * u[i];
      plain[i] = activated(u[i], kind);
    }
    expect_near(
        reference().norm_gated_mlp(x, nullptr, &gate, up, kind), gated, 1e-4);
    expect_near(
        reference().norm_gated_mlp(x, nullptr, nullptr, up, kind), plain, 1e-4);
  }
}

TEST(ReferenceLinear, ResidualIsAddedAfterNormAndScale) {
  auto x = random({1, 2, 8}, 1);
  auto linear = dense(random({4, 8}, 2));
  auto residual = random({1, 2, 4}, 3);
  Norm norm{NormKind::rms, random({4}, 4), std::nullopt, 1e-5f};
  auto y = reference().norm(project(x, linear), norm);
  auto expected = mx::add(residual, mx::multiply(y, mx::array(0.25f)));
  auto actual = reference().linear_residual(x, linear, &norm, &residual, 0.25f);
  auto wanted = values(expected);
  expect_near(actual, {wanted.begin(), wanted.end()}, 1e-6);
}

// Rope of one head [L, D] at positions offset, ... in double.
std::vector<double> naive_rope(const std::vector<float>& x,
                               int head_size,
                               const Rope& rope,
                               int offset) {
  std::vector<double> y(x.begin(), x.end());
  const int half = rope.dimensions / 2;
  std::vector<float> freqs;
  if (rope.freqs) freqs = values(*rope.freqs);
  for (std::size_t t = 0; t < x.size() / head_size; ++t) {
    for (int i = 0; i < half; ++i) {
      double frequency = rope.freqs
                             ? 1.0 / freqs[i]
                             : std::pow(rope.base, -2.0 * i / rope.dimensions);
      double angle = (offset + double(t)) * rope.scale * frequency;
      std::size_t a = t * head_size + (rope.traditional ? 2 * i : i);
      std::size_t b = a + (rope.traditional ? 1 : half);
      double first = x[a] * rope.input_scale;
      double second = x[b] * rope.input_scale;
      y[a] = first * std::cos(angle) - second * std::sin(angle);
      y[b] = first * std::sin(angle) + second * std::cos(angle);
    }
  }
  return y;
}

TEST(ReferenceRope, PartialTraditionalScaledAndOwnFrequencies) {
  std::vector<Rope> ropes(5);
  ropes[0] = {.dimensions = 8};
  ropes[1] = {.dimensions = 4, .traditional = true, .base = 500.0f};
  ropes[2] = {.dimensions = 8, .scale = 0.25f};
  ropes[3] = {.dimensions = 8,
              .freqs = mx::array({1.0f, 3.0f, 7.0f, 20.0f}),
              .input_scale = 1.5f};
  ropes[4] = {
      .dimensions = 4, .freqs = mx::array({1.0f, 5.0f}), .input_scale = 0.5f};
  for (const auto& rope : ropes) {
    for (int offset : {0, 13}) {
      auto x = random({1, 5, 2 * 8}, 7);
      auto y = reference().norm_rope(x, 2, nullptr, &rope, offset);
      ASSERT_EQ(y.shape(), (mx::Shape{1, 2, 5, 8}));
      for (int h = 0; h < 2; ++h) {
        auto head = values(mx::slice(x, {0, 0, h * 8}, {1, 5, h * 8 + 8}));
        expect_near(mx::take(y, h, 1), naive_rope(head, 8, rope, offset), 1e-4);
      }
    }
  }
}

TEST(ReferenceRope, NormRunsOverHeadsOrOverAll) {
  auto x = random({1, 3, 8}, 1);
  for (int size : {4, 8}) {
    Norm norm{NormKind::rms, random({size}, 2), std::nullopt, 1e-6f};
    auto y = reference().norm_rope(x, 2, &norm, nullptr, 0);
    auto by_hand =
        reference().norm(mx::reshape(x, {1, 3, 8 / size, size}), norm);
    auto expected =
        values(mx::transpose(mx::reshape(by_hand, {1, 3, 2, 4}), {0, 2, 1, 3}));
    expect_near(y, {expected.begin(), expected.end()}, 1e-6);
  }
}

struct AttentionCase {
  int heads, kv_heads, queries, keys, head_size, value_size;
  float softcap = 0;
  bool causal = true;
  int window = 0;
  bool sinks = false;
};

// Attention over doubles; the last query is at the last key's position.
std::vector<double> naive_attention(const AttentionCase& c,
                                    const std::vector<float>& q,
                                    const std::vector<float>& k,
                                    const std::vector<float>& v,
                                    const std::vector<float>& sinks,
                                    float scale) {
  std::vector<double> out;
  for (int h = 0; h < c.heads; ++h) {
    const int g = h / (c.heads / c.kv_heads);
    for (int i = 0; i < c.queries; ++i) {
      const int position = c.keys - c.queries + i;
      std::vector<double> weights(c.keys, 0.0);
      double total = c.sinks ? std::exp(double(sinks[h])) : 0.0;
      for (int j = 0; j < c.keys; ++j) {
        if (c.causal && j > position) continue;
        if (c.window > 0 && j <= position - c.window) continue;
        double score = 0;
        for (int d = 0; d < c.head_size; ++d) {
          score += double(q[(h * c.queries + i) * c.head_size + d]) *
                   k[(g * c.keys + j) * c.head_size + d];
        }
        score *= scale;
        if (c.softcap > 0) score = c.softcap * std::tanh(score / c.softcap);
        weights[j] = std::exp(score);
        total += weights[j];
      }
      for (int d = 0; d < c.value_size; ++d) {
        double sum = 0;
        for (int j = 0; j < c.keys; ++j) {
          sum += weights[j] * v[(g * c.keys + j) * c.value_size + d];
        }
        out.push_back(sum / total);
      }
    }
  }
  return out;
}

AttentionParameters parameters_of(const AttentionCase& c, float scale) {
  AttentionParameters p{
      .scale = scale, .softcap = c.softcap, .causal = c.causal};
  if (c.window > 0) {
    p.mask = causal_mask(c.queries, c.keys, c.keys - c.queries, c.window);
  }
  if (c.sinks) p.sinks = random({c.heads}, 9);
  return p;
}

const std::vector<AttentionCase> kAttentionCases{
    {4, 4, 5, 5, 32, 32},
    {4, 2, 1, 7, 32, 32},
    {4, 1, 3, 8, 32, 64},
    {6, 2, 5, 9, 32, 32, 0, false},
    {4, 2, 5, 9, 32, 32, 0, true, 3},
    {4, 2, 5, 9, 32, 32, 20.0f},
    {4, 2, 1, 9, 32, 64, 20.0f, true, 4},
    {4, 2, 4, 4, 32, 32, 5.0f, true, 0, true},
    {4, 2, 4, 6, 32, 32, 0, true, 0, true},
};

TEST(ReferenceAttention, MatchesLoops) {
  for (const auto& c : kAttentionCases) {
    SCOPED_TRACE(&c - kAttentionCases.data());
    auto q = random({1, c.heads, c.queries, c.head_size}, 1);
    auto k = random({1, c.kv_heads, c.keys, c.head_size}, 2);
    auto v = random({1, c.kv_heads, c.keys, c.value_size}, 3);
    auto p = parameters_of(c, 0.2f);
    auto sinks = p.sinks ? values(*p.sinks) : std::vector<float>{};
    auto out = reference().attention(q, k, v, p);
    ASSERT_EQ(out.shape(), (mx::Shape{1, c.heads, c.queries, c.value_size}));
    expect_near(
        out,
        naive_attention(c, values(q), values(k), values(v), sinks, 0.2f),
        1e-4);
  }
}

TEST(ReferenceAttention, MatchesLoopsOverQuantizedKeysAndValues) {
  for (int bits : {2, 3, 4, 6, 8}) {
    for (const auto& c : kAttentionCases) {
      SCOPED_TRACE(std::to_string(bits) + " bits, case " +
                   std::to_string(&c - kAttentionCases.data()));
      auto q = random({1, c.heads, c.queries, c.head_size}, 1);
      auto k = mx::quantize(
          random({1, c.kv_heads, c.keys, c.head_size}, 2), 32, bits);
      auto v = mx::quantize(
          random({1, c.kv_heads, c.keys, c.value_size}, 3), 32, bits);
      auto p = parameters_of(c, 0.2f);
      auto sinks = p.sinks ? values(*p.sinks) : std::vector<float>{};
      auto out = reference().quantized_attention(
          q, {k[0], k[1], k[2], 32, bits}, {v[0], v[1], v[2], 32, bits}, p);
      auto key = values(mx::dequantize(k[0], k[1], k[2], 32, bits));
      auto value = values(mx::dequantize(v[0], v[1], v[2], 32, bits));
      expect_near(
          out, naive_attention(c, values(q), key, value, sinks, 0.2f), 1e-4);
    }
  }
}

TEST(ReferenceAttention, AdditiveMaskPerHead) {
  auto q = random({1, 4, 3, 8}, 1);
  auto k = random({1, 2, 3, 8}, 2);
  auto v = random({1, 2, 3, 8}, 3);
  auto mask =
      mx::where(causal_mask(3, 3, 0), mx::array(0.0f), mx::array(-1e9f));
  AttentionParameters causal{.scale = 0.3f, .softcap = 9.0f};
  auto expected = values(reference().attention(q, k, v, causal));
  AttentionParameters masked = causal;
  masked.mask = mx::broadcast_to(mask, {1, 4, 3, 3});
  expect_near(reference().attention(q, k, v, masked),
              {expected.begin(), expected.end()},
              1e-5);
  causal.softcap = masked.softcap = 0;
  expected = values(reference().attention(q, k, v, causal));
  expect_near(reference().attention(q, k, v, masked),
              {expected.begin(), expected.end()},
              1e-5);
}

// Few and many choices (unsorted and sorted), dense and quantized stacks.
TEST(ReferenceExperts, SumOfScoredExperts) {
  const int experts = 3, model = 32, hidden = 64;
  auto stack = [&](int seed, int outputs, int inputs, bool quantized) {
    auto w = random({experts, outputs, inputs}, seed, 0.3f);
    auto linear = quantized ? quantize(w, 4, 32) : dense(w);
    linear.bias = random({experts, outputs}, seed + 20);
    return linear;
  };
  for (bool quantized : {false, true}) {
    for (bool gated : {false, true}) {
      for (int tokens : {3, 40}) {
        auto gate = stack(1, hidden, model, quantized);
        auto up = stack(2, hidden, model, quantized);
        auto down = stack(3, model, hidden, quantized);
        auto x = random({1, tokens, model}, 4);
        auto scores = random({1, tokens, 2}, 5);
        auto indices = mx::astype(
            mx::random::randint(
                0, experts, {1, tokens, 2}, mx::int32, mx::random::key(6)),
            mx::uint32);
        auto actual = reference().expert_mlp(
            x,
            {gated ? &gate : nullptr, &up, &down, Activation::silu},
            indices,
            scores);

        auto single = [&](const Linear& all, int e) {
          auto w = quantized ? dequantized(all) : all.weight;
          Linear one = dense(mx::take(w, e, 0));
          one.bias = mx::take(*all.bias, e, 0);
          return one;
        };
        auto expected = mx::zeros_like(x);
        for (int e = 0; e < experts; ++e) {
          Linear g = single(gate, e), u = single(up, e);
          auto h = reference().norm_gated_mlp(
              x, nullptr, gated ? &g : nullptr, u, Activation::silu);
          auto share =
              mx::sum(mx::where(mx::equal(indices, mx::array(e, mx::uint32)),
                                scores,
                                mx::array(0.0f)),
                      -1,
                      /*keepdims=*/true);
          expected = mx::add(expected,
                             mx::multiply(share, project(h, single(down, e))));
        }
        auto wanted = values(expected);
        expect_near(actual, {wanted.begin(), wanted.end()}, 1e-3);
      }
    }
  }
}

TEST(KernelTable, NamesAreFoundOrNot) {
  EXPECT_EQ(find_table("reference")->name, "reference");
  EXPECT_EQ(find_table("none such"), nullptr);
}

TEST(CausalMask, WindowAndOffset) {
  auto mask = values(mx::astype(causal_mask(2, 5, 3, 2), mx::float32));
  EXPECT_EQ(mask, (std::vector<float>{0, 0, 1, 1, 0, 0, 0, 0, 1, 1}));
}

}  // namespace
}  // namespace mlxlm::kernels
