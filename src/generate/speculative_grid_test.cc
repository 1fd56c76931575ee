// Speculation against plain decoding: every kind of draft with every kind of
// cache, quantized or not, read in chunks or at once, fresh or saved.
#include <sstream>

#include <gtest/gtest.h>

#include <mlxlm/generate.h>

#include "generate/toy.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

constexpr int kTokens = 60;
// Its greedy continuations repeat themselves, as does the prompt.
const std::vector<int> kPrompt =
    bytes_of("one two three, one two four, one two three, ");

std::vector<int> tokens_of(TokenGenerator& generator) {
  std::vector<int> tokens;
  while (auto step = generator.next()) {
    tokens.push_back(step->token);
  }
  return tokens;
}

struct Kind {
  const char* name;
  ToyOptions model;
  int max_kv_size = 0;
};

enum class Draft { ngram, near_model, far_model, head };

std::string name_of_cell(
    const ::testing::TestParamInfo<std::tuple<Kind, Draft>>& info) {
  const auto& [kind, draft] = info.param;
  return std::string(kind.name) + (draft == Draft::ngram        ? "Ngram"
                                   : draft == Draft::near_model ? "NearModel"
                                   : draft == Draft::head       ? "Head"
                                                                : "FarModel");
}

class SpeculationGrid
    : public ::testing::TestWithParam<std::tuple<Kind, Draft>> {
 protected:
  void SetUp() override {
    ToyOptions options = kind().model;
    if (draft() == Draft::head) {
      options.head_noise = 0.03f;
    }
    model_ = std::make_shared<ToyModel>(options);
    if (draft() == Draft::near_model) {
      options.noise = 0.03f;
      draft_ = std::make_shared<ToyModel>(options);
    } else if (draft() == Draft::far_model) {
      draft_ = std::make_shared<ToyModel>(ToyOptions{.seed = 77});
    }
  }

  Kind kind() const { return std::get<0>(GetParam()); }
  Draft draft() const { return std::get<1>(GetParam()); }

  GenerateOptions options() const {
    GenerateOptions options{.max_tokens = kTokens};
    options.max_kv_size = kind().max_kv_size;
    options.kv_group_size = 32;
    return options;
  }

  std::vector<int> plainly(const std::vector<int>& prompt,
                           GenerateOptions options) const {
    return tokens_of(*generate_step(prompt, model_, options));
  }

  std::vector<int> speculatively(const std::vector<int>& prompt,
                                 GenerateOptions options) {
    options.draft = draft() == Draft::head ? DraftKind::mtp : DraftKind::none;
    auto generator = speculative_generate_step(prompt, model_, draft_, options);
    auto tokens = tokens_of(*generator);
    num_accepted_ += generator->speculation()->accepted_tokens;
    return tokens;
  }

  void compare(GenerateOptions options,
               const std::vector<std::optional<int>>& lengths) {
    const auto plain = plainly(kPrompt, options);
    for (auto drafts : lengths) {
      options.num_draft_tokens = drafts;
      EXPECT_EQ(speculatively(kPrompt, options), plain) << drafts.value_or(0);
    }
  }

  ModelPtr model_;
  ModelPtr draft_;
  int num_accepted_ = 0;
};

const auto kKinds =
    ::testing::Values(Kind{"growing", {.seed = 11}},
                      Kind{"window", {.seed = 12, .window_tokens = 12}},
                      Kind{"limited", {.seed = 13}, 24},
                      Kind{"chunked", {.seed = 14, .chunk_tokens = 16}},
                      Kind{"recurrent", {.seed = 15, .recurrent = true}});

INSTANTIATE_TEST_SUITE_P(Cells,
                         SpeculationGrid,
                         ::testing::Combine(kKinds,
                                            ::testing::Values(Draft::ngram,
                                                              Draft::near_model,
                                                              Draft::far_model,
                                                              Draft::head)),
                         name_of_cell);

// Above temperature 0, too, n-grams change nothing: the same random numbers
// make the same tokens. (Models and heads draw random numbers of their own.)
class SeededSpeculation : public SpeculationGrid {};

INSTANTIATE_TEST_SUITE_P(Cells,
                         SeededSpeculation,
                         ::testing::Combine(kKinds,
                                            ::testing::Values(Draft::ngram)),
                         name_of_cell);

TEST_P(SpeculationGrid, Plain) {
  compare(options(), {1, 4, std::nullopt});
  if (draft() != Draft::far_model) {
    EXPECT_GT(num_accepted_, 20);
  }
}

TEST_P(SpeculationGrid, InChunks) {
  auto options = this->options();
  options.prefill_step_tokens = 5;
  compare(options, {4});
}

TEST_P(SpeculationGrid, Quantized) {
  // From the first token on, and beginning inside of a draft.
  for (auto [bits, start] : {std::pair(8, 0), std::pair(4, 61)}) {
    auto options = this->options();
    options.kv_bits = bits;
    options.quantized_kv_start = start;
    SCOPED_TRACE(std::to_string(bits) + " bits from " + std::to_string(start));
    compare(options, {3, 9});
  }
}

TEST_P(SpeculationGrid, WithPenalties) {
  auto options = this->options();
  options.logits_processors =
      make_logits_processors({.repetition_penalty = 1.3,
                              .repetition_context_size = 6,
                              .frequency_penalty = 0.2});
  compare(options, {4});
}

TEST_P(SpeculationGrid, FromASavedCache) {
  PromptCache cache;
  auto options = this->options();
  options.prompt_cache = &cache;
  options.max_tokens = 20;
  options.num_draft_tokens = 4;
  const auto first = speculatively(kPrompt, options);
  TemporaryFolder folder;
  save_prompt_cache(folder / "cache.safetensors", cache);

  auto turn = bytes_of(" one two");
  auto loaded = load_prompt_cache(folder / "cache.safetensors").first;
  options.max_tokens = 40;
  options.prompt_cache = &loaded;
  const auto second = speculatively(turn, options);

  PromptCache plain_cache;
  options.prompt_cache = &plain_cache;
  options.max_tokens = 20;
  EXPECT_EQ(first, plainly(kPrompt, options));
  options.max_tokens = 40;
  EXPECT_EQ(second, plainly(turn, options));
  EXPECT_EQ(prompt_cache_offset(loaded), prompt_cache_offset(plain_cache));
}

TEST_P(SeededSpeculation, GivesTheSameTokens) {
  auto options = this->options();
  options.sampler = make_sampler({.temperature = 0.7,
                                  .top_p = 0.9,
                                  .xtc_probability = 0.3,
                                  .xtc_threshold = 0.2});
  options.logits_processors =
      make_logits_processors({.repetition_penalty = 1.1});
  seed(5);
  const auto plain = plainly(kPrompt, options);
  for (std::optional<int> drafts : {std::optional<int>(3), {}}) {
    options.num_draft_tokens = drafts;
    seed(5);
    EXPECT_EQ(speculatively(kPrompt, options), plain);
  }
}

}  // namespace
}  // namespace mlxlm
