// Expected tokens: mlx_lm 0.32.2 with the same seed.
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <mlx/mlx.h>

#include <mlxlm/error.h>
#include <mlxlm/sample.h>

namespace mlxlm {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

mx::array logprobs() {
  mx::array logits({2.0f, 1.0f, 0.5f, -0.5f, -1.0f, 0.25f, 1.5f, -2.0f},
                   {1, 8});
  return mx::subtract(logits, mx::logsumexp(logits, -1, true));
}

std::vector<int> draws(const SamplerOptions& options,
                       const mx::array& logprobs,
                       int count = 16) {
  Sampler sampler = make_sampler(options);
  seed(42);
  std::vector<int> tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(mx::astype(sampler(logprobs), mx::int32).item<int>());
  }
  return tokens;
}

std::string fault_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::argument);
    return error.what();
  }
  return "no error";
}

std::string fault_of(const SamplerOptions& options) {
  return fault_of([&] { make_sampler(options); });
}

TEST(Sampler, ZeroTemperatureTakesTheBestWithoutFilters) {
  EXPECT_THAT(draws({}, logprobs()), Each(0));
  EXPECT_THAT(draws({.xtc_probability = 1.0}, logprobs()), Each(0));
}

TEST(Sampler, DrawsTheReferencesTokens) {
  EXPECT_THAT(draws({.temperature = 1.0}, logprobs()),
              ElementsAre(6, 1, 0, 4, 1, 0, 0, 5, 2, 6, 0, 5, 0, 0, 2, 6));
  EXPECT_THAT(draws({.temperature = 0.6}, logprobs()),
              ElementsAre(6, 0, 0, 2, 0, 0, 0, 5, 1, 6, 0, 3, 0, 0, 1, 6));
}

TEST(Sampler, FiltersBeforeTheDraw) {
  EXPECT_THAT(draws({.temperature = 1.2, .top_p = 0.8}, logprobs()),
              ElementsAre(6, 1, 0, 2, 1, 0, 0, 6, 2, 6, 0, 2, 0, 0, 2, 6));
  EXPECT_THAT(draws({.temperature = 1.0, .min_p = 0.1}, logprobs()),
              ElementsAre(6, 0, 0, 5, 1, 0, 0, 5, 2, 6, 0, 5, 0, 0, 2, 6));
  EXPECT_THAT(draws({.temperature = 1.5, .top_k = 4}, logprobs()),
              ElementsAre(6, 1, 0, 2, 1, 0, 0, 6, 2, 6, 0, 2, 1, 0, 2, 6));
}

TEST(Sampler, XtcTakesItsOwnNumberBeforeTheDraw) {
  EXPECT_THAT(
      draws({.temperature = 1.2, .xtc_probability = 0.5, .xtc_threshold = 0.1},
            logprobs()),
      ElementsAre(1, 3, 0, 4, 6, 4, 1, 6, 2, 1, 2, 3, 4, 0, 1, 3));
}

TEST(Sampler, AllFiltersInTheReferencesOrder) {
  EXPECT_THAT(draws({.temperature = 0.9,
                     .top_p = 0.95,
                     .min_p = 0.02,
                     .top_k = 6,
                     .xtc_probability = 0.5,
                     .xtc_threshold = 0.05,
                     .xtc_special_tokens = {0}},
                    logprobs()),
              ElementsAre(0, 0, 0, 0, 6, 0, 0, 6, 1, 0, 2, 0, 0, 0, 0, 0));
}

TEST(Sampler, TopPOfOneIsOff) {
  EXPECT_EQ(draws({.temperature = 1.0, .top_p = 1.0}, logprobs()),
            draws({.temperature = 1.0}, logprobs()));
}

TEST(Sampler, AlmostZeroTemperatureTakesTheBest) {
  EXPECT_THAT(draws({.temperature = 1e-300}, logprobs()), Each(0));
  EXPECT_THAT(draws({.temperature = 1e-20}, logprobs()), Each(0));
}

TEST(Sampler, GivesOneTokenForEachRow) {
  mx::array rows = mx::broadcast_to(logprobs(), {3, 8});
  EXPECT_EQ(make_sampler({})(rows).shape(), (mx::Shape{3}));
  EXPECT_EQ(make_sampler({.temperature = 1.0, .top_p = 0.5})(rows).shape(),
            (mx::Shape{3}));
}

// No token is left; the result is still one of the vocabulary.
TEST(Sampler, StaysInTheVocabularyWithoutCandidates) {
  SamplerOptions all{.temperature = 1.0,
                     .top_p = 0.5,
                     .min_p = 0.5,
                     .min_tokens_to_keep = 2,
                     .top_k = 2,
                     .xtc_probability = 1.0};
  for (double value : {kNaN, -kInfinity, kInfinity}) {
    mx::array row = mx::full({1, 4}, mx::array(static_cast<float>(value)));
    EXPECT_THAT(draws(all, row, 3), Each(AllOf(Ge(0), Le(3))));
    EXPECT_THAT(draws({}, row, 3), Each(AllOf(Ge(0), Le(3))));
  }
}

TEST(Sampler, RefusesValuesOutOfRange) {
  EXPECT_EQ(fault_of(SamplerOptions{.temperature = -1}),
            "temperature must be a finite number of at least 0, but is -1");
  EXPECT_EQ(fault_of(SamplerOptions{.top_p = 2}),
            "top_p must be in [0, 1], but is 2");
  EXPECT_THAT(fault_of(SamplerOptions{.top_p = -0.1}), HasSubstr("top_p"));
  EXPECT_THAT(fault_of(SamplerOptions{.min_p = 1.5}), HasSubstr("min_p"));
  EXPECT_THAT(fault_of(SamplerOptions{.min_p = -1}), HasSubstr("min_p"));
  EXPECT_EQ(fault_of(SamplerOptions{.min_tokens_to_keep = 0}),
            "min_tokens_to_keep must be a finite number of at least 1, but is "
            "0");
  EXPECT_THAT(fault_of(SamplerOptions{.top_k = -1}), HasSubstr("top_k"));
  EXPECT_THAT(fault_of(SamplerOptions{.xtc_probability = 1.01}),
              HasSubstr("xtc_probability"));
  EXPECT_EQ(fault_of(SamplerOptions{.xtc_threshold = 0.6}),
            "xtc_threshold must be in [0, 0.5], but is 0.6");
  EXPECT_THAT(fault_of(SamplerOptions{.xtc_special_tokens = {-1}}),
              HasSubstr("xtc_special_tokens"));
}

TEST(Sampler, RefusesNaNAndInfinity) {
  EXPECT_THAT(fault_of(SamplerOptions{.temperature = kNaN}),
              HasSubstr("temperature"));
  EXPECT_THAT(fault_of(SamplerOptions{.temperature = kInfinity}),
              HasSubstr("temperature"));
  EXPECT_THAT(fault_of(SamplerOptions{.top_p = kNaN}), HasSubstr("top_p"));
  EXPECT_THAT(fault_of(SamplerOptions{.min_p = kNaN}), HasSubstr("min_p"));
  EXPECT_THAT(fault_of(SamplerOptions{.xtc_probability = kNaN}),
              HasSubstr("xtc_probability"));
  EXPECT_THAT(fault_of(SamplerOptions{.xtc_threshold = kNaN}),
              HasSubstr("xtc_threshold"));
}

}  // namespace
}  // namespace mlxlm
