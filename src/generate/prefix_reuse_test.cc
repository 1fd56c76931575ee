// stream_generate() with a prefix store: the same tokens, less to read.
#include <gtest/gtest.h>

#include <mlxlm/generate.h>

#include "generate/toy.h"
#include "tests/support/expect_error.h"

namespace mlxlm {
namespace {

struct Answer {
  std::vector<int> tokens;
  GenerationResponse last;
};

Answer answer(const ModelPtr& model,
              const std::vector<int>& prompt,
              const GenerateOptions& options) {
  Answer answer;
  for (auto& part : stream_generate(model, nullptr, prompt, options)) {
    if (part.token >= 0) {
      answer.tokens.push_back(part.token);
    }
    answer.last = part;
  }
  return answer;
}

std::vector<int> operator+(std::vector<int> a, const std::vector<int>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

GenerateOptions plain_options() {
  GenerateOptions options;
  options.max_tokens = 8;
  options.ignore_eos = true;
  return options;
}

struct Case {
  const char* name;
  ToyOptions model;
  GenerateOptions options;
};

std::vector<Case> cases() {
  std::vector<Case> all{
      {"growing", {}, plain_options()},
      {"sliding window", {.window_tokens = 6}, plain_options()},
      {"limited", {}, plain_options()},
      {"quantized", {}, plain_options()},
      {"quantized later", {}, plain_options()},
      {"penalties", {}, plain_options()},
      {"speculative", {}, plain_options()},
  };
  // Beyond it, what a chunk sees depends on where it begins.
  all[2].options.max_kv_size = 100;
  all[3].options.kv_bits = 8;
  all[3].options.kv_group_size = 32;
  all[3].options.quantized_kv_start = 0;
  all[4].options.kv_bits = 8;
  all[4].options.kv_group_size = 32;
  all[4].options.quantized_kv_start = 40;
  all[5].options.logits_processors = make_logits_processors(
      {.repetition_penalty = 1.3, .repetition_context_size = 100});
  all[6].options.draft_model =
      std::make_shared<ToyModel>(ToyOptions{.noise = 0.1f});
  return all;
}

// A chat of several turns: each prompt is the one before, its answer, and a
// new message. With a store it gives the tokens that it gives without.
TEST(PrefixReuse, AnswersAreThoseOfTheColdRun) {
  for (Case& one : cases()) {
    SCOPED_TRACE(one.name);
    ModelPtr model = std::make_shared<ToyModel>(one.model);
    auto store = std::make_shared<PrefixStore>();
    std::vector<int> prompt = bytes_of("system: answer briefly. user: 1 ");
    for (int turn = 0; turn < 3; ++turn) {
      Answer cold = answer(model, prompt, one.options);
      GenerateOptions options = one.options;
      options.prefix_store = store;
      Answer warm = answer(model, prompt, options);
      EXPECT_EQ(warm.tokens, cold.tokens) << "turn " << turn;
      EXPECT_EQ(warm.last.prompt_tokens, static_cast<int>(prompt.size()));
      EXPECT_EQ(cold.last.reused_tokens, 0);
      if (turn == 0) {
        EXPECT_EQ(warm.last.reused_tokens, 0);
        EXPECT_NE(warm.last.reuse_reason, "");
      } else {
        // All that was read before.
        EXPECT_EQ(warm.last.reused_tokens, static_cast<int>(prompt.size()) - 9);
      }
      // A reading of the same prompt again reads its last token alone.
      Answer again = answer(model, prompt, options);
      EXPECT_EQ(again.tokens, cold.tokens);
      EXPECT_EQ(again.last.reused_tokens, static_cast<int>(prompt.size()) - 1);
      EXPECT_EQ(again.last.reuse_reason, "");
      prompt = prompt + warm.tokens + bytes_of(" user: 2 ");
    }
  }
}

TEST(PrefixReuse, MessageBoundariesAreCheckpoints) {
  ModelPtr model = std::make_shared<ToyModel>(ToyOptions{.window_tokens = 6});
  auto system = bytes_of("system: a text that all chats share. ");
  auto options = plain_options();
  options.prefix_store = std::make_shared<PrefixStore>();
  auto first = system + bytes_of("user: one");
  answer(model, first, options);
  auto second = system + bytes_of("user: two");
  auto without = answer(model, second, options);
  EXPECT_EQ(without.last.reused_tokens, 0);
  EXPECT_NE(without.last.reuse_reason.find("RotatingKVCache can't be cut"),
            std::string::npos);
  options.prefix_store = std::make_shared<PrefixStore>();
  options.prompt_checkpoints = {static_cast<int>(system.size())};
  answer(model, first, options);
  auto with = answer(model, system + bytes_of("user: three"), options);
  EXPECT_EQ(with.last.reused_tokens, static_cast<int>(system.size()));
}

TEST(PrefixReuse, CheckpointsComeEverySoManyTokens) {
  ModelPtr model = std::make_shared<ToyModel>(ToyOptions{.window_tokens = 6});
  auto options = plain_options();
  options.prefix_store = std::make_shared<PrefixStore>();
  options.checkpoint_tokens = 10;
  std::vector<int> progress;
  options.prompt_progress = [&](int done, int total) {
    EXPECT_EQ(total, 35);
    progress.push_back(done);
  };
  std::vector<int> prompt(35, 'a');
  answer(model, prompt, options);
  EXPECT_EQ(progress, (std::vector<int>{0, 10, 20, 30, 34, 35}));
  progress.clear();
  prompt[27] = 'b';
  EXPECT_EQ(answer(model, prompt, options).last.reused_tokens, 20);
  EXPECT_EQ(progress, (std::vector<int>{20, 30, 34, 35}));
}

TEST(PrefixReuse, TenantsModelsAndOptionsShareNothing) {
  ModelPtr model = std::make_shared<ToyModel>();
  auto options = plain_options();
  options.prefix_store = std::make_shared<PrefixStore>();
  options.prefix_tenant = "a";
  auto prompt = bytes_of("a prompt");
  answer(model, prompt, options);
  EXPECT_EQ(answer(model, prompt, options).last.reused_tokens, 7);
  auto other = std::make_shared<ToyModel>(ToyOptions{.seed = 3});
  EXPECT_EQ(answer(other, prompt, options).last.reused_tokens, 0);
  auto tenant = options;
  tenant.prefix_tenant = "b";
  EXPECT_EQ(answer(model, prompt, tenant).last.reused_tokens, 0);
  auto limited = options;
  limited.max_kv_size = 64;
  EXPECT_EQ(answer(model, prompt, limited).last.reused_tokens, 0);
  auto quantized = options;
  quantized.kv_bits = 8;
  quantized.kv_group_size = 32;
  EXPECT_EQ(answer(model, prompt, quantized).last.reused_tokens, 0);
}

TEST(PrefixReuse, KeepsWhatACancelledRunHasRead) {
  ModelPtr model = std::make_shared<ToyModel>();
  auto options = plain_options();
  options.prefix_store = std::make_shared<PrefixStore>();
  options.prefill_step_tokens = 10;
  options.prompt_progress = [&](int done, int) {
    if (done == 20) {
      options.cancel.cancel();
    }
  };
  std::vector<int> prompt(50, 'x');
  EXPECT_EQ(answer(model, prompt, options).last.finish_reason, "cancelled");
  options.cancel = {};
  options.prompt_progress = {};
  EXPECT_EQ(answer(model, prompt, options).last.reused_tokens, 20);
}

TEST(PrefixReuse, KeepsWhatTheCallerHasHeard) {
  ModelPtr model = std::make_shared<ToyModel>();
  auto options = plain_options();
  options.prefix_store = std::make_shared<PrefixStore>();
  auto prompt = bytes_of("a prompt");
  std::vector<int> heard;
  {
    auto stream = stream_generate(model, nullptr, prompt, options);
    heard = {stream.next()->token, stream.next()->token};
  }
  auto next = answer(model, prompt + heard + bytes_of("xy"), options);
  EXPECT_EQ(next.last.reused_tokens, static_cast<int>(prompt.size()) + 2);
}

TEST(PrefixReuse, AFailureKeepsNothing) {
  ModelPtr model = std::make_shared<ToyModel>();
  auto options = plain_options();
  options.prefix_store = std::make_shared<PrefixStore>();
  options.sampler = [](const mx::array&) -> mx::array {
    throw std::runtime_error("no idea");
  };
  EXPECT_THROW(answer(model, bytes_of("a prompt"), options),
               std::runtime_error);
  EXPECT_EQ(options.prefix_store->statistics().nbytes, 0u);
}

TEST(PrefixReuse, RefusesWhatItCannotKnow) {
  ModelPtr model = std::make_shared<ToyModel>();
  auto options = plain_options();
  options.prefix_store = std::make_shared<PrefixStore>();
  expect_error(ErrorKind::unsupported, "stream_generate(), generate()", [&] {
    generate_step({1}, model, options);
  });
  PromptCache cache;
  options.prompt_cache = &cache;
  expect_error(ErrorKind::argument, "a prompt cache", [&] {
    stream_generate(model, nullptr, std::vector<int>{1}, options);
  });
  options.prompt_cache = nullptr;
  options.input_embeddings = mx::zeros({2, ToyModel::kWidth});
  expect_error(ErrorKind::argument, "input embeddings", [&] {
    stream_generate(model, nullptr, std::vector<int>{}, options);
  });
}

}  // namespace
}  // namespace mlxlm
