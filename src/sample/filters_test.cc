// Expected tokens: mlx_lm 0.32.2 on the same logits.
#include "sample/filters.h"

#include <cmath>
#include <limits>
#include <vector>

#include <gmock/gmock.h>
#include <mlx/mlx.h>

namespace mlxlm {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

mx::array logprobs() {
  mx::array logits({2.0f, 1.0f, 0.5f, -0.5f, -1.0f, 0.25f, 1.5f, -2.0f},
                   {1, 8});
  return mx::subtract(logits, mx::logsumexp(logits, -1, true));
}

mx::array filled(float value) { return mx::full({1, 4}, mx::array(value)); }

// The columns of the first row that are still finite.
std::vector<int> kept(mx::array x) {
  x = mx::astype(x, mx::float32);
  x = mx::contiguous(x);
  x.eval();
  std::vector<int> columns;
  for (int i = 0; i < x.shape(-1); ++i) {
    if (std::isfinite(x.data<float>()[i])) {
      columns.push_back(i);
    }
  }
  return columns;
}

TEST(Filters, TopPKeepsTheNucleus) {
  EXPECT_THAT(kept(apply_top_p(logprobs(), 0.7)), ElementsAre(0, 1, 6));
}

TEST(Filters, TopPNearZeroKeepsTheBest) {
  EXPECT_THAT(kept(apply_top_p(logprobs(), 1e-9)), ElementsAre(0));
}

TEST(Filters, MinPIsRelativeToTheBest) {
  EXPECT_THAT(kept(apply_min_p(logprobs(), 0.3, 1)), ElementsAre(0, 1, 6));
}

TEST(Filters, MinPKeepsAtLeastSomeTokens) {
  EXPECT_THAT(kept(apply_min_p(logprobs(), 0.99, 4)), ElementsAre(0, 1, 2, 6));
  EXPECT_THAT(kept(apply_min_p(logprobs(), 0.99, 100)), SizeIs(8));
}

TEST(Filters, TopKKeepsTheBest) {
  EXPECT_THAT(kept(apply_top_k(logprobs(), 3)), ElementsAre(0, 1, 6));
  EXPECT_THAT(kept(apply_top_k(logprobs(), 1)), ElementsAre(0));
}

TEST(Filters, TopKOfTheVocabularyAndMoreKeepsAll) {
  EXPECT_THAT(kept(apply_top_k(logprobs(), 8)), SizeIs(8));
  EXPECT_THAT(kept(apply_top_k(logprobs(), 1000)), SizeIs(8));
}

TEST(Filters, XtcRemovesAllButTheLeastCandidate) {
  EXPECT_THAT(kept(apply_xtc(logprobs(), 1.0, 0.1, {})),
              ElementsAre(1, 2, 3, 4, 5, 7));
}

TEST(Filters, XtcSparesSpecialTokens) {
  EXPECT_THAT(kept(apply_xtc(logprobs(), 1.0, 0.1, {0})),
              ElementsAre(0, 1, 2, 3, 4, 5, 7));
}

TEST(Filters, XtcIgnoresSpecialTokensOutsideTheVocabulary) {
  EXPECT_THAT(kept(apply_xtc(logprobs(), 1.0, 0.1, {0, 8, 2147483647})),
              ElementsAre(0, 1, 2, 3, 4, 5, 7));
}

TEST(Filters, XtcWithoutCandidatesRemovesNothing) {
  EXPECT_THAT(kept(apply_xtc(logprobs(), 1.0, 0.5, {})), SizeIs(8));
}

TEST(Filters, XtcWithOneCandidateRemovesNothing) {
  EXPECT_THAT(kept(apply_xtc(logprobs(), 1.0, 0.39, {})), SizeIs(8));
}

TEST(Filters, RowsAreIndependent) {
  mx::array two =
      mx::concatenate({logprobs(), mx::negative(logprobs())}, /*axis=*/0);
  mx::array second = mx::slice(apply_top_k(two, 1), {1, 0}, {2, 8});
  EXPECT_THAT(kept(second), ElementsAre(7));
}

TEST(Filters, KeepTheTypeOfTheLogprobs) {
  mx::array half = mx::astype(logprobs(), mx::bfloat16);
  EXPECT_EQ(apply_top_p(half, 0.5).dtype(), mx::bfloat16);
  EXPECT_EQ(apply_min_p(half, 0.5, 2).dtype(), mx::bfloat16);
  EXPECT_EQ(apply_xtc(half, 0.5, 0.1, {1}).dtype(), mx::bfloat16);
  EXPECT_EQ(apply_top_k(half, 2).dtype(), mx::bfloat16);
}

// Whatever is left, filtering must not read outside the arrays.
TEST(Filters, SurviveRowsWithoutAnyMass) {
  mx::array none = filled(-std::numeric_limits<float>::infinity());
  EXPECT_THAT(kept(apply_top_p(none, 0.5)), IsEmpty());
  EXPECT_THAT(kept(apply_min_p(none, 0.5, 2)), IsEmpty());
  EXPECT_THAT(kept(apply_xtc(none, 1.0, 0.1, {})), IsEmpty());
  EXPECT_THAT(kept(apply_top_k(none, 2)), IsEmpty());
}

TEST(Filters, SurviveNaN) {
  mx::array nan = filled(std::numeric_limits<float>::quiet_NaN());
  EXPECT_THAT(kept(apply_top_p(nan, 0.5)), IsEmpty());
  EXPECT_THAT(kept(apply_min_p(nan, 0.5, 2)), IsEmpty());
  EXPECT_THAT(kept(apply_xtc(nan, 1.0, 0.1, {})), IsEmpty());
  EXPECT_THAT(kept(apply_top_k(nan, 2)), IsEmpty());
}

TEST(Filters, SurviveAVocabularyOfOne) {
  mx::array one = mx::full({1, 1}, mx::array(0.0f));
  EXPECT_THAT(kept(apply_top_p(one, 0.5)), ElementsAre(0));
  EXPECT_THAT(kept(apply_min_p(one, 0.5, 1)), ElementsAre(0));
  EXPECT_THAT(kept(apply_xtc(one, 1.0, 0.1, {})), ElementsAre(0));
  EXPECT_THAT(kept(apply_top_k(one, 1)), ElementsAre(0));
}

}  // namespace
}  // namespace mlxlm
