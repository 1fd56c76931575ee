// Recurrent models over 4,096 tokens: however they are cut into chunks, the
// answer is the same.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/model.h>

#include "kernels/seam.h"

namespace mlxlm::parity {
namespace {

namespace fs = std::filesystem;

constexpr int kNumTokens = 4096;

// The last `num_tokens` are read in chunks of `size`, what comes before in
// chunks of 512.
struct Chunks {
  int size;
  int num_tokens;
};
constexpr Chunks kChunks[] = {{512, kNumTokens}, {7, 1024}, {1, 256}};

std::vector<int> some_tokens(int vocabulary_size) {
  std::vector<int> tokens;
  unsigned state = 7;
  for (int i = 0; i < kNumTokens; ++i) {
    state = state * 1664525u + 1013904223u;
    tokens.push_back(
        1 + static_cast<int>((state >> 8) %
                             static_cast<unsigned>(vocabulary_size - 1)));
  }
  return tokens;
}

// Reads on in chunks up to `end`; the logits of the last token.
mx::array read(Model& model,
               const std::vector<int>& tokens,
               const PromptCache& cache,
               int begin,
               int end,
               int chunk) {
  mx::array last(0.0f);
  for (; begin < end; begin += chunk) {
    const int count = std::min(chunk, end - begin);
    const mx::array part(tokens.data() + begin, {1, count}, mx::int32);
    auto logits = model.forward(part, cache);
    last = mx::slice(logits, {0, count - 1, 0}, {1, count, logits.shape(2)});
    mx::eval(last);
    evaluate_prompt_cache(cache);
  }
  return last;
}

// Every bit is the same, but where sums run in another order: the rows of a
// window turn, latents are brought up to keys for many tokens only.
struct Case {
  const char* model_type;
  bool same_bits;
};

class LongInput : public testing::TestWithParam<Case> {};

TEST_P(LongInput, ChunksAgree) {
  const char* models = std::getenv("MLXLM_PARITY_MODELS");
  if (models == nullptr) GTEST_SKIP() << "MLXLM_PARITY_MODELS isn't set";
  if (fs::exists(fs::path(models) / "SKIPPED")) GTEST_SKIP() << "no models";
  if (kernels::table().name == "reference") {
    GTEST_SKIP() << "the reference has a node of the graph for each token";
  }
  auto model = load_model(
      (fs::path(models) / GetParam().model_type / "visible").string());
  const auto tokens = some_tokens(model->vocabulary_size());
  const auto whole =
      read(*model, tokens, model->make_cache(), 0, kNumTokens, kNumTokens);
  const float largest = mx::max(mx::abs(whole)).item<float>();
  auto expect_same = [&](const mx::array& logits, int chunk) {
    auto error = mx::max(mx::abs(mx::subtract(logits, whole)));
    const float allowed = GetParam().same_bits ? 0.0f : 1e-5f * largest;
    EXPECT_LE(error.item<float>(), allowed) << "chunks of " << chunk;
  };
  for (const auto& [size, num_tokens] : kChunks) {
    auto cache = model->make_cache();
    const int begin = kNumTokens - num_tokens;
    read(*model, tokens, cache, 0, begin, 512);
    const auto checkpoint = checkpoint_prompt_cache(cache);
    expect_same(read(*model, tokens, cache, begin, kNumTokens, size), size);
    if (size != 1) continue;
    // There and back again.
    rollback_prompt_cache(cache, checkpoint);
    expect_same(read(*model, tokens, cache, begin, kNumTokens, 100), 100);
  }
}

// One of each kind of recurrence.
INSTANTIATE_TEST_SUITE_P(Recurrent,
                         LongInput,
                         testing::Values(Case{"baichuan_m1", false},
                                         Case{"bailing_moe_linear", true},
                                         Case{"falcon_h1", true},
                                         Case{"kimi_linear", false},
                                         Case{"lfm2", true},
                                         Case{"mamba", true},
                                         Case{"qwen3_5", true},
                                         Case{"recurrent_gemma", false},
                                         Case{"rwkv7", true}),
                         [](const auto& info) {
                           return info.param.model_type;
                         });

}  // namespace
}  // namespace mlxlm::parity
