// Every family against the reference: the models that make_models.py made.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/model.h>

#include "kernels/seam.h"
#include "tests/parity/expectation.h"

namespace mlxlm::parity {
namespace {

namespace fs = std::filesystem;

mx::array row_of(const std::vector<int>& tokens) {
  return mx::array(tokens.data(), {1, static_cast<int>(tokens.size())});
}

mx::array forward(Model& model,
                  const std::vector<int>& tokens,
                  const PromptCache& cache) {
  auto logits = mx::squeeze(model.forward(row_of(tokens), cache), 0);
  mx::eval(logits);
  return logits;
}

// In chunks of 7 and 9 tokens, then token by token.
mx::array forward_in_chunks(Model& model, const std::vector<int>& tokens) {
  auto cache = model.make_cache();
  std::vector<mx::array> parts;
  std::size_t begin = 0;
  for (std::size_t step = 0; begin < tokens.size(); ++step) {
    const std::size_t size = step == 0 ? 7 : step == 1 ? 9 : 1;
    const auto end = std::min(begin + size, tokens.size());
    parts.push_back(
        forward(model, {tokens.begin() + begin, tokens.begin() + end}, cache));
    begin = end;
  }
  return mx::concatenate(parts, 0);
}

struct Greedy {
  std::vector<int> tokens;
  std::vector<mx::array> logprobs;
};

// As the reference's generate_step: all but the last prompt token at once.
// `after_step` may exchange the caches.
Greedy run_greedy(Model& model,
                  std::vector<int> prompt,
                  PromptCache cache,
                  const std::function<void(PromptCache&)>& after_step = {}) {
  Greedy result;
  std::vector<int> next{prompt.back()};
  prompt.pop_back();
  forward(model, prompt, cache);
  for (int step = 0; step < 24; ++step) {
    if (after_step) after_step(cache);
    auto logits = forward(model, next, cache);
    auto logprobs = mx::subtract(logits, mx::logsumexp(logits, -1, true));
    const int token = static_cast<int>(mx::argmax(logits).item<uint32_t>());
    result.tokens.push_back(token);
    result.logprobs.push_back(mx::squeeze(logprobs, 0));
    next = {token};
  }
  return result;
}

void quantize(PromptCache& cache, int bits) {
  for (auto& layer : cache) {
    if (layer->kind() == "KVCache")
      layer = layer->to_quantized({bits, bits, 32});
  }
}

// With sums in another order a key or value may fall to the other side of the
// edge between two codes, which are 1/15 of the range apart at 4 bits.
double kv_slack(int bits) {
  const bool same_order = kernels::table().name == "reference";
  return same_order ? 1 : bits == 4 ? 30 : 3;
}

void check_model(const fs::path& folder) {
  SCOPED_TRACE(folder.string());
  const Expectation expected(folder);
  auto model = load_model(folder.string());
  const auto tokens = expected.ints("tokens");
  EXPECT_TRUE(expected.near("logits", forward(*model, tokens, {})));
  EXPECT_TRUE(
      expected.near("logits_cached", forward_in_chunks(*model, tokens)));
  auto greedy = run_greedy(*model, tokens, model->make_cache());
  EXPECT_TRUE(expected.same_tokens("greedy", greedy.tokens));
  for (int bits : {4, 8}) {
    const auto name = "kv" + std::to_string(bits);
    if (!expected.has(name + "_greedy")) continue;
    auto run = run_greedy(
        *model, tokens, model->make_cache(), [&](PromptCache& cache) {
          quantize(cache, bits);
        });
    EXPECT_TRUE(expected.same_tokens(name, run.tokens));
    EXPECT_TRUE(expected.near(
        name + "_first_logprobs", run.logprobs[0], kv_slack(bits)));
  }
  if (expected.has("rot_greedy")) {
    auto run = run_greedy(*model, tokens, model->make_cache(16));
    EXPECT_TRUE(expected.same_tokens("rot", run.tokens));
    if (run.tokens == expected.ints("rot_greedy")) {
      EXPECT_TRUE(expected.near("rot_last_logprobs", run.logprobs.back()));
    }
  }
}

class ModelParity : public testing::TestWithParam<const char*> {};

TEST_P(ModelParity, EveryVariant) {
  const char* models = std::getenv("MLXLM_PARITY_MODELS");
  if (models == nullptr) {
    GTEST_SKIP() << "MLXLM_PARITY_MODELS isn't set; ./test makes the models";
  }
  if (std::ifstream skipped(fs::path(models) / "SKIPPED"); skipped) {
    GTEST_SKIP() << std::string(std::istreambuf_iterator<char>(skipped), {});
  }
  const auto family = fs::path(models) / GetParam();
  ASSERT_TRUE(fs::is_directory(family)) << family;
  std::vector<fs::path> variants(fs::directory_iterator(family), {});
  std::sort(variants.begin(), variants.end());
  EXPECT_GE(variants.size(), 5u);
  for (const auto& variant : variants) check_model(variant);
}

INSTANTIATE_TEST_SUITE_P(Families,
                         ModelParity,
                         testing::Values("cohere2",
                                         "gemma",
                                         "gemma2",
                                         "gemma3",
                                         "gemma3_text",
                                         "glm4",
                                         "granite",
                                         "llama",
                                         "mistral",
                                         "mixtral",
                                         "olmo2",
                                         "phi3",
                                         "qwen2",
                                         "qwen2_moe",
                                         "qwen3",
                                         "qwen3_moe",
                                         "smollm3",
                                         "starcoder2"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace mlxlm::parity
