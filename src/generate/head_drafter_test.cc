// Speculation with a model's own draft head.
#include <gtest/gtest.h>
#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/generate.h>

#include "generate/toy.h"
#include "models/random_checkpoint.h"
#include "tests/support/expect_error.h"

namespace mlxlm {
namespace {

using nlohmann::json;

constexpr int kTokens = 32;  // of the vocabulary, and the width

// Of the embedding of token t, one number isn't 0. The layers add nothing, and
// the vocabulary answers with t's successor 5 t + 3.
int successor(int token) { return (5 * token + 3) % kTokens; }

// matrix[successor(t), t] = 1: [V, V].
mx::array successors() {
  std::vector<float> values(kTokens * kTokens, 0.0f);
  for (int token = 0; token < kTokens; ++token) {
    values[successor(token) * kTokens + token] = 1;
  }
  return mx::array(values.data(), {kTokens, kTokens});
}

enum class Reads { token, state, wrong_state };

// The head makes of its inputs the successor of the newest token: of that
// token, or of the state of the token before by going two steps.
ModelPtr counting_model(Reads reads, bool state_first) {
  json config = {{"model_type", state_first ? "mimo" : "glm4_moe"},
                 {"hidden_size", kTokens},
                 {"num_hidden_layers", 2},
                 {"intermediate_size", 16},
                 {"num_attention_heads", 2},
                 {"num_key_value_heads", 1},
                 {"head_dim", 16},
                 {"vocab_size", kTokens},
                 {"max_position_embeddings", 512},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", 10000.0},
                 {"partial_rotary_factor", 1.0},
                 {"first_k_dense_replace", 9},
                 {"tie_word_embeddings", false}};
  auto checkpoint = random_checkpoint(config, 1);
  config["num_hidden_layers"] = 1;
  const auto names =
      state_first ? draft_head_of_mimo() : draft_head_beside_layer(2);
  add_draft_head(checkpoint, random_checkpoint(config, 2), names);
  for (auto& [name, value] : checkpoint.weights) {
    if (name.find("o_proj") != std::string::npos ||
        name.find("down_proj") != std::string::npos) {
      value = mx::zeros(value.shape());
    } else if (name.find("norm.weight") != std::string::npos) {
      value = mx::ones(value.shape());
    }
  }
  auto set = [&](const std::string& name, const mx::array& value) {
    checkpoint.weights.insert_or_assign(name + ".weight", value);
  };
  const auto none = mx::zeros({kTokens, kTokens});
  auto of_token = reads == Reads::token ? mx::eye(kTokens) : none;
  auto of_state = reads == Reads::state         ? successors()
                  : reads == Reads::wrong_state ? mx::eye(kTokens)
                                                : none;
  if (state_first) std::swap(of_token, of_state);
  set(names.projection, mx::concatenate({of_token, of_state}, 1));
  set("model.embed_tokens", mx::eye(kTokens));
  set("lm_head", successors());
  return make_model(checkpoint, {.draft_head = true});
}

struct Result {
  std::vector<int> tokens;
  SpeculationStatistics statistics;
};

Result run(const ModelPtr& model,
           const std::vector<int>& prompt,
           GenerateOptions options) {
  options.draft = DraftKind::mtp;
  auto generator = speculative_generate_step(prompt, model, nullptr, options);
  Result result;
  while (auto step = generator->next()) result.tokens.push_back(step->token);
  result.statistics = *generator->speculation();
  return result;
}

// Each draft is a successor of the token or state before, so that one place too
// early or too late, or tokens and states the wrong way round, is never right.
TEST(HeadDrafter, APerfectHeadIsAlwaysRight) {
  std::vector<int> prompt{7};
  while (prompt.size() < 7) prompt.push_back(successor(prompt.back()));
  std::vector<int> expected{successor(prompt.back())};
  while (expected.size() < 31) expected.push_back(successor(expected.back()));
  for (bool state_first : {false, true}) {
    for (Reads reads : {Reads::token, Reads::state, Reads::wrong_state}) {
      auto model = counting_model(reads, state_first);
      for (int num_drafts : {1, 4}) {
        GenerateOptions options{.max_tokens = 31, .prefill_step_tokens = 3};
        options.num_draft_tokens = num_drafts;
        auto result = run(model, prompt, options);
        EXPECT_EQ(result.tokens, expected);
        const auto& s = result.statistics;
        EXPECT_EQ(s.draft, DraftKind::mtp);
        EXPECT_GE(s.drafted_tokens, 15);
        EXPECT_EQ(s.accepted_tokens,
                  reads == Reads::wrong_state ? 0 : s.drafted_tokens);
      }
    }
  }
}

// A saved cache lacks the state of its last token: one draft is the worse.
TEST(HeadDrafter, GoesOnFromACache) {
  auto model = counting_model(Reads::state, false);
  PromptCache cache;
  GenerateOptions options{.max_tokens = 9, .prompt_cache = &cache};
  options.num_draft_tokens = 2;
  auto first = run(model, {1, 2, 3}, options);
  EXPECT_EQ(cache.size(), 3u);
  for (const auto& layer : cache) EXPECT_EQ(layer->offset(), 12);
  auto second = run(model, {4}, options);
  EXPECT_EQ(second.tokens.front(), successor(4));
  EXPECT_LE(
      second.statistics.drafted_tokens - second.statistics.accepted_tokens, 2);
  // One of the model alone, with and without its tokens.
  PromptCache own = model->make_cache();
  GenerateOptions plain{.max_tokens = 5, .prompt_cache = &own};
  auto generator = generate_step({9, 8, 7}, model, plain);
  while (generator->next()) {
  }
  options.prompt_cache = &own;
  auto third = run(model, {4}, options);
  EXPECT_EQ(third.tokens.front(), successor(4));
  EXPECT_EQ(own.size(), 3u);
}

// Many plain steps before the first draft, and a long prompt.
TEST(HeadDrafter, ReadsWhatHasWaited) {
  auto model = counting_model(Reads::state, false);
  std::vector<int> prompt{0};
  while (prompt.size() < 300) prompt.push_back(successor(prompt.back()));
  GenerateOptions options{.max_tokens = 200};
  auto chosen = run(model, prompt, options);
  options.num_draft_tokens = 3;
  auto fixed = run(model, prompt, options);
  EXPECT_EQ(chosen.tokens, fixed.tokens);
  EXPECT_EQ(fixed.statistics.accepted_tokens, fixed.statistics.drafted_tokens);
  EXPECT_EQ(chosen.statistics.accepted_tokens,
            chosen.statistics.drafted_tokens);
}

TEST(HeadDrafter, Refuses) {
  ModelPtr none = std::make_shared<ToyModel>();
  GenerateOptions options;
  options.draft = DraftKind::mtp;
  expect_error(ErrorKind::unsupported, "deepseek_v3", [&] {
    speculative_generate_step({1}, none, nullptr, options);
  });
  ModelPtr model = std::make_shared<ToyModel>(ToyOptions{.head_noise = 0.1f});
  auto embeddings = options;
  embeddings.input_embeddings = mx::zeros({21, 64});
  expect_error(ErrorKind::unsupported, "can't read input embeddings", [&] {
    speculative_generate_step({}, model, nullptr, embeddings);
  });
  options.draft_model = none;
  expect_error(ErrorKind::argument, "draft is mtp, but there is", [&] {
    stream_generate(model, nullptr, std::vector<int>{1}, options);
  });
}

}  // namespace
}  // namespace mlxlm
