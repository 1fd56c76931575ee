// 500 greedy tokens of tiny models of several families, with speculation and
// without: MLXLM_PARITY_MODELS names the folder of make_models.py.
#include <cstdlib>
#include <filesystem>

#include <gtest/gtest.h>
#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/generate.h>

#include "tests/support/margin.h"

namespace mlxlm {
namespace {

namespace fs = std::filesystem;

constexpr int kTokens = 500;
constexpr float kTie = 1e-4f;

struct Cell {
  const char* name;
  int bits;   // 0: none
  int start;  // of quantization
  int chunk_tokens;
  int max_kv_size;
};

struct Decoded {
  std::vector<int> tokens;
  std::vector<mx::array> logprobs;  // if asked for
  int accepted = 0;
};

Decoded decoded(std::unique_ptr<TokenGenerator> generator, bool with_logprobs) {
  Decoded result;
  while (auto step = generator->next()) {
    result.tokens.push_back(step->token);
    if (with_logprobs) result.logprobs.push_back(step->logprobs);
  }
  if (auto* speculation = generator->speculation()) {
    result.accepted = speculation->accepted_tokens;
  }
  return result;
}

class SpeculationEquality
    : public ::testing::TestWithParam<std::pair<const char*, Cell>> {
 protected:
  void SetUp() override {
    const char* models = std::getenv("MLXLM_PARITY_MODELS");
    if (models == nullptr) {
      GTEST_SKIP() << "MLXLM_PARITY_MODELS isn't set; ./test makes the models";
    }
    model_ = first_variant(fs::path(models) / GetParam().first);
    other_ = first_variant(fs::path(models) / "llama");
    if (!model_ || !other_) {
      GTEST_SKIP() << GetParam().first << " has not been made";
    }
    const Cell& cell = GetParam().second;
    options_.max_tokens = kTokens;
    options_.prefill_step_tokens = cell.chunk_tokens;
    options_.max_kv_size = cell.max_kv_size;
    options_.kv_group_size = 32;
    options_.quantized_kv_start = cell.start;
    if (cell.bits > 0) options_.kv_bits = cell.bits;
    for (int i = 0; i < 24; ++i) {
      prompt_.push_back(1 + i * 37 % 12);
    }
    plain_ = decoded(generate_step(prompt_, model_, options_), true);
  }

  static ModelPtr first_variant(const fs::path& family) {
    if (!fs::is_directory(family)) return nullptr;
    std::vector<fs::path> variants(fs::directory_iterator(family), {});
    std::ranges::sort(variants);
    return load_model(variants.front().string());
  }

  int expect_equal(const ModelPtr& draft, std::optional<int> num_drafts) {
    auto options = options_;
    options.num_draft_tokens = num_drafts;
    auto fast = decoded(
        speculative_generate_step(prompt_, model_, draft, options), false);
    EXPECT_EQ(fast.tokens.size(), plain_.tokens.size());
    const auto [one, other] = std::ranges::mismatch(plain_.tokens, fast.tokens);
    if (one != plain_.tokens.end()) {
      const auto step = one - plain_.tokens.begin();
      EXPECT_LT(margin_of(plain_.logprobs[step]), kTie) << "step " << step;
    }
    return fast.accepted;
  }

  std::vector<int> prompt_;
  ModelPtr model_;
  ModelPtr other_;
  GenerateOptions options_;
  Decoded plain_;
};

// Most choose their caches themselves, whatever the limit is, and have heads
// too small for groups of 32; speculative_models_test.cc has such caches.
std::vector<std::pair<const char*, Cell>> cells() {
  std::vector<std::pair<const char*, Cell>> all;
  for (const char* family : {"llama",
                             "gemma3_text",
                             "cohere2",
                             "qwen2_moe",
                             "lfm2",
                             "mamba2",
                             "qwen3_next"}) {
    all.push_back({family, {"Plain", 0, 0, 2048, 0}});
  }
  all.push_back({"qwen2_moe", {"Limited", 0, 0, 2048, 64}});
  for (const char* family : {"llama", "qwen3_next"}) {
    all.push_back({family, {"EightBits", 8, 0, 7, 0}});
    all.push_back({family, {"FourBitsLater", 4, 99, 5, 0}});
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Cells,
                         SpeculationEquality,
                         ::testing::ValuesIn(cells()),
                         [](const auto& info) {
                           return std::string(info.param.first) +
                                  info.param.second.name;
                         });

TEST_P(SpeculationEquality, OfNgrams) {
  EXPECT_GT(expect_equal(nullptr, 5), 0);  // something was drafted
  expect_equal(nullptr, std::nullopt);
}

TEST_P(SpeculationEquality, OfADraftModel) {
  EXPECT_GT(expect_equal(model_, 4), 300);  // itself
  expect_equal(other_, 3);
}

}  // namespace
}  // namespace mlxlm
