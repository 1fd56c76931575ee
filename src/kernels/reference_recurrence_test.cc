// The reference recurrences against plain loops over doubles.
#include <cmath>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "kernels/seam.h"

namespace mlxlm::kernels {
namespace {

const Table& reference() { return *find_table("reference"); }

class ReferenceRecurrence : public testing::Test {
 protected:
  void SetUp() override { mx::random::seed(3); }
};

mx::array random(const mx::Shape& shape) { return mx::random::normal(shape); }

std::vector<float> values(const mx::array& a) {
  auto flat = mx::contiguous(mx::flatten(a));
  mx::eval(flat);
  return {flat.data<float>(), flat.data<float>() + flat.size()};
}

void expect_near(const mx::array& actual, const std::vector<double>& expected) {
  const auto got = values(actual);
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(got[i], expected[i], 2e-5 * (1 + std::abs(expected[i])))
        << "at " << i;
  }
}

TEST_F(ReferenceRecurrence, ConvolutionSeesTheTokensBefore) {
  constexpr int kTokens = 5, kChannels = 3, kTaps = 4;
  auto x = random({1, kTokens, kChannels});
  auto state = random({1, kTaps - 1, kChannels});
  auto weight = random({kChannels, kTaps});
  auto bias = random({kChannels});
  auto [y, after] = reference().causal_conv(x, {weight, bias, true}, state);

  const auto all = values(mx::concatenate({state, x}, 1));
  const auto w = values(weight);
  const auto b = values(bias);
  std::vector<double> expected;
  for (int t = 0; t < kTokens; ++t) {
    for (int c = 0; c < kChannels; ++c) {
      double sum = b[c];
      for (int k = 0; k < kTaps; ++k) {
        sum += double(w[c * kTaps + k]) * all[(t + k) * kChannels + c];
      }
      expected.push_back(sum / (1 + std::exp(-sum)));
    }
  }
  expect_near(y, expected);
  expect_near(after, {all.end() - (kTaps - 1) * kChannels, all.end()});
}

// S = decay S (1 - beta k k^T) + beta v k^T as gated delta networks have it:
// the value that the decayed state holds for k goes towards v.
TEST_F(ReferenceRecurrence, DeltaRuleCorrectsWhatIsHeldForAKey) {
  constexpr int kTokens = 6, kKeys = 3, kValues = 2;
  auto q = random({1, kTokens, 1, kKeys});
  auto k = random({1, kTokens, 1, kKeys});
  auto v = random({1, kTokens, 1, kValues});
  auto decay = mx::sigmoid(random({1, kTokens, 1}));
  auto beta = mx::sigmoid(random({1, kTokens, 1}));
  auto state = random({1, 1, kValues, kKeys});
  auto [y, after] = reference().matrix_scan(
      {.q = q, .k = k, .v = v, .decay = decay, .beta = beta}, state);

  const auto qs = values(q), ks = values(k), vs = values(v);
  const auto decays = values(decay), betas = values(beta);
  const auto begin = values(state);
  std::vector<double> s(begin.begin(), begin.end());
  std::vector<double> expected;
  for (int t = 0; t < kTokens; ++t) {
    for (int row = 0; row < kValues; ++row) {
      double held = 0, answer = 0;
      for (int i = 0; i < kKeys; ++i) {
        s[row * kKeys + i] *= decays[t];
        held += s[row * kKeys + i] * ks[t * kKeys + i];
      }
      for (int i = 0; i < kKeys; ++i) {
        s[row * kKeys + i] +=
            betas[t] * (vs[t * kValues + row] - held) * ks[t * kKeys + i];
        answer += s[row * kKeys + i] * qs[t * kKeys + i];
      }
      expected.push_back(answer);
    }
  }
  expect_near(y, expected);
  expect_near(after, s);
}

TEST_F(ReferenceRecurrence, SelectiveScanHasADecayForEachNumber) {
  constexpr int kTokens = 4, kChannels = 2, kSize = 3;
  auto x = random({1, kTokens, kChannels});
  auto step = mx::exp(random({1, kTokens, kChannels}));
  auto a = mx::negative(mx::exp(random({kChannels, kSize})));
  auto b = random({1, kTokens, kSize});
  auto c = random({1, kTokens, kSize});
  auto skip = random({kChannels});
  auto state = random({1, kChannels, kSize});
  auto [y, after] = reference().selective_scan(
      {.x = x, .step = step, .a = a, .b = b, .c = c, .skip = skip}, state);

  const auto xs = values(x), steps = values(step), as = values(a);
  const auto bs = values(b), cs = values(c), skips = values(skip);
  const auto begin = values(state);
  std::vector<double> s(begin.begin(), begin.end());
  std::vector<double> expected;
  for (int t = 0; t < kTokens; ++t) {
    for (int ch = 0; ch < kChannels; ++ch) {
      const double dt = steps[t * kChannels + ch];
      const double in = xs[t * kChannels + ch];
      double answer = skips[ch] * in;
      for (int i = 0; i < kSize; ++i) {
        double& number = s[ch * kSize + i];
        number = number * std::exp(dt * as[ch * kSize + i]) +
                 dt * in * bs[t * kSize + i];
        answer += number * cs[t * kSize + i];
      }
      expected.push_back(answer);
    }
  }
  expect_near(y, expected);
  expect_near(after, s);
}

}  // namespace
}  // namespace mlxlm::kernels
