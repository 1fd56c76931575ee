#include <gtest/gtest.h>

#include <mlxlm/generate.h>

#include "generate/toy.h"
#include "tests/support/expect_error.h"

namespace mlxlm {
namespace {

struct Result {
  std::vector<int> tokens;
  int num_from_draft = 0;
};

Result drained(std::unique_ptr<TokenGenerator> generator, int at_most = 1000) {
  Result result;
  while (static_cast<int>(result.tokens.size()) < at_most) {
    auto step = generator->next();
    if (!step) {
      break;
    }
    EXPECT_EQ(step->logprobs.shape(), (mx::Shape{ToyModel::kVocabulary}));
    EXPECT_NEAR(mx::logsumexp(step->logprobs).item<float>(), 0, 1e-4);
    result.tokens.push_back(step->token);
    result.num_from_draft += step->from_draft ? 1 : 0;
  }
  return result;
}

const std::vector<int> kPrompt = bytes_of("Speculation is cheap.");

struct Case {
  const char* name;
  ToyOptions model;
  ToyOptions draft;
};

// That the caches have read exactly this: both models go on as from the start.
void expect_goes_on(const ModelPtr& model,
                    PromptCache cache,
                    std::vector<int> history) {
  EXPECT_EQ(prompt_cache_offset(cache), static_cast<int>(history.size()));
  GenerateOptions options{.max_tokens = 5, .prompt_cache = &cache};
  auto on = drained(generate_step({'x'}, model, options));
  history.push_back('x');
  auto expected = drained(generate_step(history, model, {.max_tokens = 5}));
  EXPECT_EQ(on.tokens, expected.tokens);
}

class Speculative : public ::testing::TestWithParam<Case> {
 protected:
  // Both parts of a cache.
  void expect_holds(const PromptCache& cache,
                    std::vector<int> history,
                    const std::vector<int>& tokens) const {
    SCOPED_TRACE(tokens.size());
    history.insert(history.end(), tokens.begin(), tokens.end());
    ASSERT_EQ(cache.size(), 4u);
    expect_goes_on(model_, {cache.begin(), cache.begin() + 2}, history);
    expect_goes_on(draft_, {cache.begin() + 2, cache.end()}, history);
  }

  ModelPtr model_ = std::make_shared<ToyModel>(GetParam().model);
  ModelPtr draft_ = std::make_shared<ToyModel>(GetParam().draft);
};

INSTANTIATE_TEST_SUITE_P(
    Models,
    Speculative,
    ::testing::Values(Case{"itself", {.seed = 1}, {.seed = 1}},
                      Case{"near", {.seed = 1}, {.seed = 1, .noise = 0.05f}},
                      Case{"far", {.seed = 1}, {.seed = 5}},
                      Case{"windows",
                           {.seed = 2, .window_tokens = 8},
                           {.seed = 2, .window_tokens = 8, .noise = 0.05f}},
                      Case{"draftWindow",
                           {.seed = 3},
                           {.seed = 3, .window_tokens = 6, .noise = 0.02f}},
                      Case{"farWindows",
                           {.seed = 2, .window_tokens = 8},
                           {.seed = 4, .window_tokens = 5}},
                      Case{"chunks",
                           {.seed = 2, .chunk_tokens = 7},
                           {.seed = 2, .chunk_tokens = 7, .noise = 0.05f}},
                      Case{"recurrent",
                           {.seed = 2, .recurrent = true},
                           {.seed = 2, .recurrent = true, .noise = 0.05f}}),
    [](const auto& info) { return info.param.name; });

TEST_P(Speculative, GivesTheSameTokens) {
  auto plain = drained(generate_step(kPrompt, model_, {.max_tokens = 30}));
  for (int num_drafts : {1, 3, 7}) {
    for (int chunk : {3, 2048}) {
      GenerateOptions options{.max_tokens = 30, .prefill_step_tokens = chunk};
      options.num_draft_tokens = num_drafts;
      auto fast =
          drained(speculative_generate_step(kPrompt, model_, draft_, options));
      EXPECT_EQ(fast.tokens, plain.tokens) << num_drafts << ' ' << chunk;
    }
  }
}

TEST_P(Speculative, GivesTheSameTokensWithPenalties) {
  GenerateOptions options{.max_tokens = 24};
  options.logits_processors = make_logits_processors(
      {.repetition_penalty = 1.4f, .frequency_penalty = 0.7f});
  options.num_draft_tokens = 3;
  auto plain = drained(generate_step(kPrompt, model_, options));
  auto fast =
      drained(speculative_generate_step(kPrompt, model_, draft_, options));
  EXPECT_EQ(fast.tokens, plain.tokens);
}

TEST_P(Speculative, LeavesCachesToGoOnFrom) {
  // Ended by the limit or by leaving, at every place in a round.
  for (int count : {1, 2, 3, 4, 5, 9}) {
    for (bool limited : {true, false}) {
      PromptCache cache;
      GenerateOptions options{.max_tokens = limited ? count : -1,
                              .prompt_cache = &cache};
      options.num_draft_tokens = 3;
      auto first = drained(
          speculative_generate_step(kPrompt, model_, draft_, options), count);
      ASSERT_EQ(first.tokens.size(), static_cast<std::size_t>(count));
      expect_holds(cache, kPrompt, first.tokens);
    }
  }
}

TEST(SpeculativeStep, AGoodDraftIsAccepted) {
  ModelPtr model = std::make_shared<ToyModel>();
  GenerateOptions options{.max_tokens = 30};
  options.num_draft_tokens = 4;
  auto itself =
      drained(speculative_generate_step(kPrompt, model, model, options));
  EXPECT_EQ(itself.num_from_draft, 24);  // four of five
  ModelPtr far = std::make_shared<ToyModel>(ToyOptions{.seed = 9});
  auto other = drained(speculative_generate_step(kPrompt, model, far, options));
  EXPECT_LT(other.num_from_draft, 10);
}

TEST(SpeculativeStep, QuantizesBothCaches) {
  ModelPtr model = std::make_shared<ToyModel>();
  PromptCache cache;
  GenerateOptions options{.max_tokens = 20, .prompt_cache = &cache};
  options.kv_bits = 8;
  options.kv_group_size = 32;
  options.quantized_kv_start = 0;
  auto result =
      drained(speculative_generate_step(kPrompt, model, model, options));
  EXPECT_EQ(result.tokens.size(), 20u);
  for (const auto& layer : cache) {
    EXPECT_EQ(layer->kind(), "QuantizedKVCache");
  }
}

TEST(SpeculativeStep, ReportsProgressAndCancels) {
  auto model = std::make_shared<ToyModel>();
  std::vector<int> seen;
  GenerateOptions options{.max_tokens = -1, .prefill_step_tokens = 8};
  options.prompt_progress = [&](int done, int) { seen.push_back(done); };
  auto generator = speculative_generate_step(kPrompt, model, model, options);
  generator->next();
  EXPECT_EQ(seen, (std::vector<int>{0, 8, 16, 20, 21}));
  options.cancel.cancel();
  expect_error(ErrorKind::cancelled, "cancelled", [&] { generator->next(); });
  EXPECT_FALSE(generator->next());
}

TEST(SpeculativeStep, Refuses) {
  ModelPtr model = std::make_shared<ToyModel>();
  auto refused = [&](ErrorKind kind,
                     const std::string& part,
                     const GenerateOptions& options) {
    expect_error(kind, part, [&] {
      speculative_generate_step(kPrompt, model, model, options);
    });
  };
  GenerateOptions embeddings;
  embeddings.input_embeddings = mx::zeros({21, 64});
  refused(ErrorKind::unsupported, "can't read input embeddings", embeddings);
  GenerateOptions none;
  none.num_draft_tokens = 0;
  refused(ErrorKind::argument, "num_draft_tokens is 0", none);
  PromptCache odd = model->make_cache(0);
  odd.push_back(odd.front());
  GenerateOptions cache;
  cache.prompt_cache = &odd;
  refused(ErrorKind::argument, "3 layers where the model has 4", cache);
}

}  // namespace
}  // namespace mlxlm
