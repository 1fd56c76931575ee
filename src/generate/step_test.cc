#include <atomic>
#include <chrono>
#include <memory>
#include <set>
#include <thread>

#include <gtest/gtest.h>

#include <mlxlm/generate.h>

#include "core/log.h"
#include "generate/memory_estimate.h"
#include "generate/toy.h"
#include "kernels/mlx_compat/host_op.h"
#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

std::vector<int> ids_of(TokenGenerator& generator, int at_most = 1000) {
  std::vector<int> ids;
  while (static_cast<int>(ids.size()) < at_most) {
    auto step = generator.next();
    if (!step) {
      break;
    }
    ids.push_back(step->token);
  }
  return ids;
}

std::vector<int> generated(const ModelPtr& model,
                           const std::vector<int>& prompt,
                           const GenerateOptions& options) {
  return ids_of(*generate_step(prompt, model, options));
}

// Greedy tokens by whole passes without a cache.
std::vector<int> by_whole_passes(Model& model,
                                 std::vector<int> tokens,
                                 int count) {
  std::vector<int> ids;
  for (int i = 0; i < count; ++i) {
    auto row = mx::array(
        tokens.data(), {1, static_cast<int>(tokens.size())}, mx::int32);
    auto best = mx::astype(mx::argmax(model.forward(row), -1), mx::int32);
    best.eval();
    ids.push_back(best.data<int>()[tokens.size() - 1]);
    tokens.push_back(ids.back());
  }
  return ids;
}

const std::vector<int> kPrompt = bytes_of("The quick brown fox jumps over.");

class StepTest : public ::testing::TestWithParam<ToyOptions> {
 protected:
  ModelPtr model_ = std::make_shared<ToyModel>(GetParam());
};

INSTANTIATE_TEST_SUITE_P(Models,
                         StepTest,
                         ::testing::Values(ToyOptions{.seed = 1},
                                           ToyOptions{.seed = 2,
                                                      .window_tokens = 8}));

TEST_P(StepTest, CachedEqualsWhole) {
  auto whole = by_whole_passes(*model_, kPrompt, 20);
  EXPECT_GT(std::set<int>(whole.begin(), whole.end()).size(), 3u);
  EXPECT_EQ(generated(model_, kPrompt, {.max_tokens = 20}), whole);
}

TEST_P(StepTest, NoStepRunsOnAfterTheEnd) {
  auto finished = std::make_shared<std::atomic<int>>(0);
  int drawn = 0;
  auto slow_greedy = [&](const mx::array& logprobs) {
    ++drawn;
    auto slow_copy = [finished](auto in, auto out) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      *out[0].template data<int>() = *in[0].template data<int>();
      ++*finished;
    };
    auto best = mx::astype(mx::argmax(logprobs, -1), mx::int32);
    return kernels::host_op("slow", {{{1}, mx::int32}}, {best}, slow_copy)[0];
  };
  auto generator =
      generate_step(kPrompt, model_, {.max_tokens = 3, .sampler = slow_greedy});
  EXPECT_EQ(ids_of(*generator, 2).size(), 2u);
  generator.reset();
  EXPECT_EQ(drawn, 3);  // the third was under way
  EXPECT_EQ(*finished, 3);
}

TEST_P(StepTest, ChunksEqualTheWhole) {
  auto whole = generated(model_, kPrompt, {.max_tokens = 12});
  for (int chunk : {1, 2, 7, 30, 31}) {
    EXPECT_EQ(
        generated(
            model_, kPrompt, {.max_tokens = 12, .prefill_step_tokens = chunk}),
        whole)
        << chunk;
  }
}

TEST_P(StepTest, ContinuesFromACache) {
  auto whole = generated(model_, kPrompt, {.max_tokens = 20});
  std::vector<int> first(kPrompt.begin(), kPrompt.begin() + 11);
  std::vector<int> rest(kPrompt.begin() + 11, kPrompt.end());
  PromptCache cache;  // filled by the generation
  // Reads the beginning and one token of its own, which is taken back.
  generated(model_, first, {.max_tokens = 0, .prompt_cache = &cache});
  ASSERT_EQ(cache.size(), 2u);
  EXPECT_EQ(cache[0]->offset(), 11);
  EXPECT_EQ(generated(model_, rest, {.max_tokens = 20, .prompt_cache = &cache}),
            whole);
  // All that was given out is in the cache, and the next turn goes on there.
  EXPECT_EQ(cache[1]->offset(), 31 + 20);
  auto turn = bytes_of(" And?");
  auto history = kPrompt;
  history.insert(history.end(), whole.begin(), whole.end());
  history.insert(history.end(), turn.begin(), turn.end());
  EXPECT_EQ(generated(model_, turn, {.max_tokens = 9, .prompt_cache = &cache}),
            generated(model_, history, {.max_tokens = 9}));
}

TEST_P(StepTest, ContinuesFromASavedCache) {
  auto whole = generated(model_, kPrompt, {.max_tokens = 20});
  PromptCache cache;
  std::vector<int> first(kPrompt.begin(), kPrompt.begin() + 20);
  std::vector<int> rest(kPrompt.begin() + 20, kPrompt.end());
  generated(model_, first, {.max_tokens = 0, .prompt_cache = &cache});
  TemporaryFolder folder;
  std::string path = folder / "cache.safetensors";
  save_prompt_cache(path, cache);
  auto loaded = load_prompt_cache(path).first;
  EXPECT_EQ(
      generated(model_, rest, {.max_tokens = 20, .prompt_cache = &loaded}),
      whole);
}

TEST_P(StepTest, EmbeddingsEqualTokens) {
  auto row = mx::array(kPrompt.data(), {static_cast<int>(kPrompt.size())});
  auto embeddings = model_->embed(row);
  auto whole = generated(model_, kPrompt, {.max_tokens = 12});
  for (const auto& prompt : {std::vector<int>{}, kPrompt}) {
    for (int chunk : {4, 2048}) {
      GenerateOptions options{.max_tokens = 12, .prefill_step_tokens = chunk};
      options.input_embeddings = embeddings;
      EXPECT_EQ(generated(model_, prompt, options), whole);
    }
  }
}

TEST_P(StepTest, LogprobsAreNormalized) {
  auto generator = generate_step(kPrompt, model_, {.max_tokens = 2});
  while (auto step = generator->next()) {
    EXPECT_EQ(step->logprobs.shape(), (mx::Shape{ToyModel::kVocabulary}));
    EXPECT_EQ(step->logprobs.dtype(), mx::float32);
    EXPECT_NEAR(mx::logsumexp(step->logprobs).item<float>(), 0, 1e-4);
    EXPECT_EQ(mx::argmax(step->logprobs).item<std::uint32_t>(),
              static_cast<std::uint32_t>(step->token));
    EXPECT_FALSE(step->from_draft);
  }
}

TEST_P(StepTest, AFullCacheEqualsARotatingOneThatIsLargeEnough) {
  EXPECT_EQ(generated(model_, kPrompt, {.max_tokens = 12, .max_kv_size = 64}),
            generated(model_, kPrompt, {.max_tokens = 12}));
  auto small =
      generated(model_, kPrompt, {.max_tokens = 40, .max_kv_size = 16});
  EXPECT_EQ(small.size(), 40u);
}

TEST(GenerateStep, StepsAreDispatchedAhead) {
  auto model = std::make_shared<ToyModel>();
  auto generator = generate_step({1, 2, 3}, model, {.max_tokens = 3});
  EXPECT_EQ(model->num_forwards, 0);  // nothing before the first next()
  generator->next();
  // The prompt in two parts, and already the step after the first token.
  EXPECT_EQ(model->num_forwards, 3);
  generator->next();
  EXPECT_EQ(model->num_forwards, 4);
  generator->next();
  EXPECT_EQ(model->num_forwards, 5);
  EXPECT_FALSE(generator->next());
  EXPECT_FALSE(generator->next());
  EXPECT_EQ(model->num_forwards, 5);
}

TEST(GenerateStep, ReportsProgress) {
  auto model = std::make_shared<ToyModel>();
  std::vector<std::pair<int, int>> seen;
  GenerateOptions options{.max_tokens = 1, .prefill_step_tokens = 4};
  options.prompt_progress = [&](int done, int total) {
    seen.emplace_back(done, total);
  };
  generated(model, std::vector<int>(10, 65), options);
  EXPECT_EQ(seen,
            (std::vector<std::pair<int, int>>{
                {0, 10}, {4, 10}, {8, 10}, {9, 10}, {10, 10}}));
}

TEST(GenerateStep, ProcessorsSeeTheHistory) {
  auto model = std::make_shared<ToyModel>();
  std::vector<std::vector<int>> histories;
  GenerateOptions options{.max_tokens = 2, .prefill_step_tokens = 2};
  options.logits_processors.push_back(
      [&](const mx::array& tokens, const mx::array& logits) {
        auto ids = mx::contiguous(mx::astype(tokens, mx::int32));
        ids.eval();
        histories.emplace_back(ids.data<int>(), ids.data<int>() + ids.size());
        return logits;
      });
  auto ids = generated(model, {5, 6, 7, 8}, options);
  ASSERT_EQ(histories.size(), 3u);
  EXPECT_EQ(histories[0], (std::vector<int>{5, 6, 7, 8}));
  EXPECT_EQ(histories[1], (std::vector<int>{5, 6, 7, 8, ids[0]}));
  EXPECT_EQ(histories[2], (std::vector<int>{5, 6, 7, 8, ids[0], ids[1]}));
}

TEST(GenerateStep, BansATokenByItsBias) {
  auto model = std::make_shared<ToyModel>();
  auto plain = generated(model, kPrompt, {.max_tokens = 10});
  GenerateOptions options{.max_tokens = 10};
  options.logits_processors =
      make_logits_processors({.logit_bias = {{plain[0], -1e9f}}});
  auto biased = generated(model, kPrompt, options);
  EXPECT_EQ(std::count(biased.begin(), biased.end(), plain[0]), 0);
}

TEST(GenerateStep, SameSeedSameTokens) {
  auto model = std::make_shared<ToyModel>();
  GenerateOptions options{.max_tokens = 12};
  options.sampler = make_sampler({.temperature = 2.0f});
  seed(7);
  auto one = generated(model, kPrompt, options);
  seed(7);
  EXPECT_EQ(generated(model, kPrompt, options), one);
  seed(8);
  EXPECT_NE(generated(model, kPrompt, options), one);
}

TEST(GenerateStep, NoLimit) {
  auto model = std::make_shared<ToyModel>();
  auto generator = generate_step(kPrompt, model, {.max_tokens = -1});
  EXPECT_EQ(ids_of(*generator, 300).size(), 300u);
}

TEST(GenerateStep, QuantizesTheCacheFromTheStartGiven) {
  auto model = std::make_shared<ToyModel>();
  for (int start : {0, 35, 1000}) {
    PromptCache cache;
    GenerateOptions options{.max_tokens = 10, .prompt_cache = &cache};
    options.kv_bits = 8;
    options.kv_group_size = 32;
    options.quantized_kv_start = start;
    auto ids = generated(model, kPrompt, options);
    EXPECT_EQ(ids.size(), 10u);
    EXPECT_EQ(cache[0]->kind(), start == 1000 ? "KVCache" : "QuantizedKVCache");
    EXPECT_EQ(cache[0]->offset(), 41);
    if (start > 0) {
      // The first tokens were computed from exact keys and values.
      auto exact = generated(model, kPrompt, {.max_tokens = 4});
      EXPECT_TRUE(std::equal(exact.begin(), exact.end(), ids.begin()));
    }
  }
}

TEST(GenerateStep, QuantizesRotatingCaches) {
  auto windowed = std::make_shared<ToyModel>(ToyOptions{.window_tokens = 8});
  auto full = std::make_shared<ToyModel>();
  GenerateOptions options{.max_tokens = 10};
  options.kv_key_bits = 8;
  options.kv_value_bits = 6;
  options.kv_group_size = 32;
  options.quantized_kv_start = 0;
  for (const auto& [model, size] : {std::pair{windowed, 0}, {full, 16}}) {
    PromptCache cache;
    options.prompt_cache = &cache;
    options.max_kv_size = size;
    EXPECT_EQ(generated(model, kPrompt, options).size(), 10u);
    for (const auto& layer : cache) {
      EXPECT_EQ(layer->capabilities().quantization, (KvQuantization{8, 6, 32}));
    }
    EXPECT_EQ(cache[0]->kind(), "QuantizedRotatingKVCache");
  }
}

TEST(GenerateStep, RefusesBadArguments) {
  auto model = std::make_shared<ToyModel>();
  auto refused = [&](const std::string& part,
                     const std::vector<int>& prompt,
                     const std::function<void(GenerateOptions&)>& change) {
    GenerateOptions options;
    change(options);
    expect_error(ErrorKind::argument, part, [&] {
      generate_step(prompt, model, options);
    });
  };
  using O = GenerateOptions&;
  refused("prompt is empty", {}, [](O) {});
  refused("token 260", {1, 260}, [](O) {});
  refused("token -1", {-1}, [](O) {});
  refused("max_tokens is -2", {1}, [](O o) { o.max_tokens = -2; });
  refused(
      "prefill_step_tokens is 0", {1}, [](O o) { o.prefill_step_tokens = 0; });
  refused("max_kv_size is -1", {1}, [](O o) { o.max_kv_size = -1; });
  refused("must be larger", {1}, [](O o) { o.max_kv_size = 4; });
  refused("number of bits is 7", {1}, [](O o) { o.kv_bits = 7; });
  refused("group size is 5", {1}, [](O o) {
    o.kv_bits = 4;
    o.kv_group_size = 5;
  });
  refused("there are kv_key_bits but no kv_value_bits", {1}, [](O o) {
    o.kv_key_bits = 8;
  });
  refused("quantized_kv_start", {1}, [](O o) { o.quantized_kv_start = -1; });
  refused("stop text is empty", {1}, [](O o) { o.stop_texts = {""}; });
  refused("inside a character", {1}, [](O o) { o.stop_texts = {"\x80"}; });
  refused("stop sequence is empty", {1}, [](O o) { o.stop_sequences = {{}}; });
  refused("must be [tokens, width]", {}, [](O o) {
    o.input_embeddings = mx::zeros({0, 64});
  });
  refused("numbers must be equal", {1, 2}, [](O o) {
    o.input_embeddings = mx::zeros({3, 64});
  });
  PromptCache other{make_kv_cache()};
  refused("1 layers where the model has 2", {1}, [&](O o) {
    o.prompt_cache = &other;
  });
}

TEST(GenerateStep, RefusesACacheOfAnotherShape) {
  auto model = std::make_shared<ToyModel>();
  PromptCache cache = model->make_cache(0);
  auto rows = mx::zeros({1, 5, 3, 32});
  cache[0]->attend(rows, rows, rows, {});
  cache[1]->attend(rows, rows, rows, {});
  auto generator = generate_step(kPrompt, model, {.prompt_cache = &cache});
  expect_error(
      ErrorKind::argument, "another model", [&] { generator->next(); });
  EXPECT_FALSE(generator->next());
}

TEST(GenerateStep, WarnsBeyondTheContext) {
  auto model = std::make_shared<ToyModel>(ToyOptions{.context_tokens = 16});
  std::vector<std::string> warnings;
  set_log_handler(
      [&](LogLevel, std::string_view text) { warnings.emplace_back(text); });
  generate_step(std::vector<int>(16, 1), model, {});
  EXPECT_TRUE(warnings.empty());
  EXPECT_EQ(generated(model, std::vector<int>(17, 1), {.max_tokens = 1}).size(),
            1u);
  set_log_handler({});
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("17 tokens, more than the 16"), std::string::npos);
}

// Sets a variable while it lives.
class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) {
    ::setenv(name, value, 1);
  }
  ~Environment() { ::unsetenv(name_); }

 private:
  const char* name_;
};

TEST(GenerateStep, RefusesPromptsBeyondTheMemory) {
  auto model = std::make_shared<ToyModel>(ToyOptions{.context_tokens = 0});
  // Two layers of keys and values of two heads of 32 float32.
  EXPECT_EQ(CacheEstimate(*model, {}).bytes(3000), 3000u * 2 * 2 * 2 * 32 * 4);
  GenerateOptions small{.max_kv_size = 100, .prefill_step_tokens = 50};
  EXPECT_EQ(CacheEstimate(*model, small).bytes(3000),
            150u * 2 * 2 * 2 * 32 * 4);
  GenerateOptions quantized{
      .kv_bits = 8, .kv_group_size = 32, .quantized_kv_start = 2999};
  EXPECT_EQ(CacheEstimate(*model, quantized).bytes(3000),
            3000u * 2 * 2 * 2 * (32 + 8));

  std::vector<int> prompt(3000, 'a');
  {
    Environment limit("MLX_LM_MEMORY_LIMIT", "1000000");
    expect_error(ErrorKind::memory, "KV cache of 3000 tokens", [&] {
      generate_step(prompt, model, {});
    });
    generate_step(prompt, model, small);
    generate_step(std::vector<int>(100, 'a'), model, {});
  }
  EXPECT_EQ(model->num_forwards, 5);  // none but the estimates
}

TEST(GenerateStep, CancelledWithinOneChunk) {
  auto model = std::make_shared<ToyModel>();
  GenerateOptions options{.prefill_step_tokens = 2};
  model->on_forward = [&] { options.cancel.cancel(); };
  auto generator = generate_step(kPrompt, model, options);
  expect_error(ErrorKind::cancelled, "cancelled", [&] { generator->next(); });
  EXPECT_EQ(model->num_forwards, 1);
  EXPECT_FALSE(generator->next());
}

TEST(GenerateStep, CancelledFromAnotherThread) {
  auto model = std::make_shared<ToyModel>();
  GenerateOptions options{.max_tokens = -1};
  auto generator = generate_step(kPrompt, model, options);
  CancelToken token = options.cancel;
  std::thread canceller;
  int steps = 0;
  expect_error(ErrorKind::cancelled, "cancelled", [&] {
    while (generator->next()) {
      if (++steps == 3) {
        canceller = std::thread([token]() mutable { token.cancel(); });
        canceller.join();
      }
    }
  });
  EXPECT_EQ(steps, 3);
}

TEST(GenerateStep, PastDeadline) {
  auto model = std::make_shared<ToyModel>();
  GenerateOptions options;
  options.deadline = std::chrono::steady_clock::now();
  auto generator = generate_step(kPrompt, model, options);
  expect_error(ErrorKind::cancelled, "deadline", [&] { generator->next(); });
  EXPECT_EQ(model->num_forwards, 0);
}

TEST(GenerateStep, FailingCallbackEndsIt) {
  auto model = std::make_shared<ToyModel>();
  GenerateOptions options;
  options.prompt_progress = [](int, int) { throw std::runtime_error("mine"); };
  auto generator = generate_step(kPrompt, model, options);
  EXPECT_THROW(generator->next(), std::runtime_error);
  EXPECT_FALSE(generator->next());
}

TEST(GenerateStep, MadeOnOneThreadWalkedOnOthers) {
  auto model = std::make_shared<ToyModel>();
  auto whole = generated(model, kPrompt, {.max_tokens = 6});
  auto generator = generate_step(kPrompt, model, {.max_tokens = 6});
  std::vector<int> ids;
  std::thread([&] {
    for (int i = 0; i < 6; ++i) {
      ids.push_back(generator->next()->token);
    }
    generator.reset();
  }).join();
  EXPECT_EQ(ids, whole);

  generator = generate_step(kPrompt, model, {.max_tokens = 6});
  ids.clear();
  for (int i = 0; i < 6; ++i) {
    std::thread([&] { ids.push_back(generator->next()->token); }).join();
  }
  EXPECT_EQ(ids, whole);
}

}  // namespace
}  // namespace mlxlm
