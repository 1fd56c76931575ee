// The two default models: 300 greedy tokens with speculation and without.
#include <filesystem>

#include <gtest/gtest.h>
#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/generate.h>

#include "core/file.h"
#include "load/resolve.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/test_data.h"

namespace mlxlm {
namespace {

using nlohmann::json;

constexpr int kTokens = 300;

struct RealModel {
  const char* name;
  const char* file;
  const char* reference;  // of tests/data
};

class RealSpeculation : public ::testing::TestWithParam<RealModel> {
 protected:
  void SetUp() override {
    auto file = default_models_folder() / GetParam().file;
    if (!std::filesystem::exists(file)) {
      GTEST_SKIP() << file << " is not there; ./test fetches it";
    }
    auto reference = json::parse(read_file(test_data(GetParam().reference)));
    prompt_ = reference["prompt_tokens"].get<std::vector<int>>();
    model_ = load_model(file.string());
  }

  GenerateOptions options() const { return {.max_tokens = kTokens}; }

  // Bit by bit: a row's numbers don't depend on its neighbours.
  void expect_equal(const GenerateOptions& options,
                    const ModelPtr& draft,
                    std::optional<int> num_drafts,
                    int least_accepted) {
    auto with_drafts = options;
    with_drafts.num_draft_tokens = num_drafts;
    auto plain = generate_step(prompt_, model_, options);
    auto fast = speculative_generate_step(prompt_, model_, draft, with_drafts);
    int count = 0;
    while (auto one = plain->next()) {
      auto other = fast->next();
      ASSERT_TRUE(other);
      ASSERT_EQ(one->token, other->token) << "step " << count;
      ASSERT_TRUE(mx::array_equal(one->logprobs, other->logprobs).item<bool>())
          << "step " << count;
      ++count;
    }
    EXPECT_EQ(count, kTokens);
    EXPECT_GE(fast->speculation()->accepted_tokens, least_accepted);
  }

  std::vector<int> prompt_;
  ModelPtr model_;
};

constexpr RealModel kSmolLM2{
    "SmolLM2", "SmolLM2-135M-Instruct.Q4_1.gguf", "reference_smollm2.json"};
constexpr RealModel kGemma3{
    "Gemma3", "gemma-3-270m-q4_k_m.gguf", "reference_gemma3.json"};

std::string name_of(const ::testing::TestParamInfo<RealModel>& info) {
  return info.param.name;
}

INSTANTIATE_TEST_SUITE_P(Files,
                         RealSpeculation,
                         ::testing::Values(kSmolLM2, kGemma3),
                         name_of);

// What takes long enough with the smaller one.
class LlamaSpeculation : public RealSpeculation {};

INSTANTIATE_TEST_SUITE_P(Files,
                         LlamaSpeculation,
                         ::testing::Values(kSmolLM2),
                         name_of);

TEST_P(RealSpeculation, Ngrams) {
  expect_equal(options(), nullptr, std::nullopt, 0);
}

TEST_P(LlamaSpeculation, NgramsOfFixedLength) {
  expect_equal(options(), nullptr, 4, 10);
}

TEST_P(RealSpeculation, NgramsWithAQuantizedCache) {
  auto quantized = options();
  quantized.kv_bits = 8;
  quantized.quantized_kv_start = 60;
  quantized.prefill_step_tokens = 16;
  expect_equal(quantized, nullptr, 4, 10);
}

TEST_P(LlamaSpeculation, NgramsWithALimitedCache) {
  auto limited = options();
  limited.max_kv_size = 96;
  expect_equal(limited, nullptr, 4, 10);
}

TEST_P(LlamaSpeculation, TheModelItselfAsDraft) {
  expect_equal(options(), model_, 4, 200);
}

TEST_P(LlamaSpeculation, FromASavedCache) {
  PromptCache cache;
  auto first = options();
  first.max_tokens = 0;
  first.prompt_cache = &cache;
  generate_step(prompt_, model_, first)->next();
  TemporaryFolder folder;
  save_prompt_cache(folder / "cache.safetensors", cache);
  prompt_ = {prompt_.end() - 3, prompt_.end()};
  std::vector<std::vector<int>> tokens;
  for (bool fast : {false, true}) {
    auto loaded = load_prompt_cache(folder / "cache.safetensors").first;
    auto on = options();
    on.prompt_cache = &loaded;
    on.num_draft_tokens = 4;
    auto generator =
        fast ? speculative_generate_step(prompt_, model_, nullptr, on)
             : generate_step(prompt_, model_, on);
    tokens.emplace_back();
    while (auto step = generator->next()) tokens.back().push_back(step->token);
  }
  EXPECT_EQ(tokens[0], tokens[1]);
}

}  // namespace
}  // namespace mlxlm
