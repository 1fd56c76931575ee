// Expected logits: mlx_lm 0.32.2 on the same tokens.
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

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

const std::vector<float> kLogits{
    2.0f, 1.0f, 0.5f, -0.5f, -1.0f, 0.25f, 1.5f, -2.0f};

mx::array row_of(const std::vector<float>& values) {
  return mx::array(values.begin(), {1, static_cast<int>(values.size())});
}

mx::array tokens_of(const std::vector<int>& ids) {
  return mx::array(ids.begin(), {static_cast<int>(ids.size())}, mx::int32);
}

std::vector<float> floats_of(mx::array x) {
  x = mx::contiguous(mx::astype(x, mx::float32));
  x.eval();
  return {x.data<float>(), x.data<float>() + x.size()};
}

std::vector<float> processed(const PenaltyOptions& options,
                             const std::vector<int>& tokens = {
                                 1, 3, 3, 6, 0, 3}) {
  mx::array logits = row_of(kLogits);
  for (const LogitsProcessor& process : make_logits_processors(options)) {
    logits = process(tokens_of(tokens), logits);
  }
  return floats_of(logits);
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

std::string fault_of(const PenaltyOptions& options) {
  return fault_of([&] { make_logits_processors(options); });
}

TEST(LogitsProcessors, NoneByDefault) {
  EXPECT_THAT(make_logits_processors({}), IsEmpty());
}

TEST(LogitsProcessors, RepetitionDividesOrMultiplies) {
  EXPECT_THAT(processed({.repetition_penalty = 1.5}),
              ElementsAre(1.3333333730697632f,
                          0.6666666865348816f,
                          0.5f,
                          -0.75f,
                          -1.0f,
                          0.25f,
                          1.0f,
                          -2.0f));
}

TEST(LogitsProcessors, RepetitionLooksAtItsContextOnly) {
  EXPECT_THAT(
      processed({.repetition_penalty = 1.5, .repetition_context_size = 2}),
      ElementsAre(
          1.3333333730697632f, 1.0f, 0.5f, -0.75f, -1.0f, 0.25f, 1.5f, -2.0f));
}

TEST(LogitsProcessors, PresenceCountsOnce) {
  EXPECT_THAT(processed({.presence_penalty = 0.5, .presence_context_size = 3}),
              ElementsAre(1.5f, 1.0f, 0.5f, -1.0f, -1.0f, 0.25f, 1.0f, -2.0f));
}

TEST(LogitsProcessors, FrequencyCountsEveryTime) {
  EXPECT_THAT(processed({.frequency_penalty = 0.5}),
              ElementsAre(1.5f, 0.5f, 0.5f, -2.0f, -1.0f, 0.25f, 1.0f, -2.0f));
}

TEST(LogitsProcessors, BiasIsAdded) {
  EXPECT_THAT(processed({.logit_bias = {{2, 3.0}, {7, -1.0}}}),
              ElementsAre(2.0f, 1.0f, 3.5f, -0.5f, -1.0f, 0.25f, 1.5f, -3.0f));
}

TEST(LogitsProcessors, BiasOfMinusInfinityForbids) {
  EXPECT_EQ(processed({.logit_bias = {{0, -kInfinity}}})[0],
            -std::numeric_limits<float>::infinity());
}

TEST(LogitsProcessors, ContextSizeZeroMeansAll) {
  EXPECT_EQ(processed({.frequency_penalty = 0.5, .frequency_context_size = 0}),
            processed({.frequency_penalty = 0.5}));
}

TEST(LogitsProcessors, LeaveLogitsAloneWithoutTokens) {
  EXPECT_THAT(processed({.repetition_penalty = 2,
                         .presence_penalty = 2,
                         .frequency_penalty = 2},
                        {}),
              ElementsAreArray(kLogits));
}

TEST(LogitsProcessors, WorkOnEveryRow) {
  mx::array rows = mx::broadcast_to(row_of(kLogits), {2, 8});
  auto process = make_logits_processors({.presence_penalty = 1}).at(0);
  std::vector<float> result = floats_of(process(tokens_of({0}), rows));
  EXPECT_EQ(result[0], 1.0f);
  EXPECT_EQ(result[8], 1.0f);
}

TEST(LogitsProcessors, RefuseABiasOutsideTheVocabulary) {
  EXPECT_EQ(fault_of([] {
              processed({.logit_bias = {{8, 1.0}}});
            }),
            "logit_bias names token 8, but the vocabulary ends at 7");
  EXPECT_THAT(fault_of(PenaltyOptions{.logit_bias = {{-1, 1.0}}}),
              HasSubstr("logit_bias's token"));
  EXPECT_THAT(fault_of(PenaltyOptions{.logit_bias = {{1, kNaN}}}),
              HasSubstr("logit_bias's value"));
}

TEST(LogitsProcessors, RefuseValuesOutOfRange) {
  EXPECT_EQ(fault_of(PenaltyOptions{.repetition_penalty = -1}),
            "repetition_penalty must be a finite number of at least 0, but is "
            "-1");
  EXPECT_THAT(fault_of(PenaltyOptions{.repetition_penalty = kNaN}),
              HasSubstr("repetition_penalty"));
  EXPECT_THAT(fault_of(PenaltyOptions{.presence_penalty = kInfinity}),
              HasSubstr("presence_penalty"));
  EXPECT_THAT(fault_of(PenaltyOptions{.frequency_penalty = kNaN}),
              HasSubstr("frequency_penalty"));
  EXPECT_THAT(fault_of(PenaltyOptions{.repetition_context_size = -1}),
              HasSubstr("repetition_context_size"));
}

}  // namespace
}  // namespace mlxlm
