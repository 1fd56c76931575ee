// The engine under many threads, against single runs.
#include <atomic>
#include <thread>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/batch.h>

#include "generate/toy.h"
#include "tests/support/expect_error.h"

namespace mlxlm {
namespace {

BatchRequest request(const std::string& text, int max_tokens) {
  return {.prompt = bytes_of(text),
          .options = {.max_tokens = max_tokens, .ignore_eos = true}};
}

class EngineTest : public ::testing::Test {
 protected:
  std::string alone(const std::string& text, int max_tokens) const {
    std::string answer;
    auto each = request(text, max_tokens);
    for (const auto& part :
         stream_generate(model_, tokenizer_, each.prompt, each.options)) {
      answer += part.text;
    }
    return answer;
  }

  ModelPtr model_ = std::make_shared<ToyModel>();
  TokenizerPtr tokenizer_ = std::make_shared<ToyTokenizer>();
};

TEST_F(EngineTest, AnswersAsAlone) {
  const auto expected = alone("Hello", 20);
  Engine engine(model_, tokenizer_);
  auto first = engine.submit(request("Hello", 20));
  auto second = engine.submit(request("Hello", 20));
  EXPECT_EQ(first.text(), expected);
  EXPECT_EQ(second.text(), expected);
  EXPECT_TRUE(first.ended());
  EXPECT_EQ(first.next(), std::nullopt);
}

TEST_F(EngineTest, CallsBack) {
  const auto expected = alone("Hello", 20);
  std::string text;
  std::atomic<bool> ended = false;
  Engine engine(model_, tokenizer_);
  const RowId id =
      engine.submit(request("Hello", 20), [&](const BatchPart& part) {
        text += part.part.text;
        EXPECT_FALSE(part.part.logprobs.has_value());
        ended = !part.part.finish_reason.empty();
      });
  EXPECT_EQ(id, 0u);
  while (!ended) std::this_thread::yield();
  EXPECT_EQ(text, expected);
}

// What a caller gives may be computed on its own thread only, and what it gets
// must be usable there.
TEST_F(EngineTest, ArraysPassBetweenThreads) {
  PromptCache expected_cache;
  auto whole = request("Hello, you", 8);
  whole.options.prompt_cache = &expected_cache;
  std::string expected;
  for (const auto& part :
       stream_generate(model_, tokenizer_, whole.prompt, whole.options)) {
    expected += part.text;
  }
  PromptCache cache = model_->make_cache(0);
  model_->forward(mx::array({bytes_of("Hello")[0]}, {1, 1}), cache);
  auto rest = bytes_of("ello, you");
  auto tokens = mx::array(rest.data(), {static_cast<int>(rest.size())});
  Engine engine(model_, tokenizer_, {.logprobs = true});
  BatchRequest embedded{.options = whole.options};
  embedded.options.prompt_cache = &cache;
  embedded.options.input_embeddings = model_->embed(tokens);
  auto answer = engine.submit(embedded);
  std::string text;
  while (auto part = answer.next()) {
    text += part->text;
    EXPECT_LT(mx::min(*part->logprobs).item<float>(), 0.0f);
  }
  EXPECT_EQ(text, expected);
  auto on = [&](PromptCache& read) {
    auto next = bytes_of("x")[0];
    return model_->forward(mx::array({next}, {1, 1}), read);
  };
  EXPECT_TRUE(mx::allclose(on(cache), on(expected_cache)).item<bool>());
}

TEST_F(EngineTest, ErrorsReachTheirOwnersOnly) {
  const auto expected = alone("good", 10);
  Engine engine(model_, tokenizer_);
  auto empty = engine.submit({});
  auto good = engine.submit(request("good", 10));
  auto faulty = request("bad", 10);
  faulty.options.logits_processors = {
      [](const mx::array&, const mx::array&) -> mx::array {
        throw std::runtime_error("a fault");
      }};
  auto bad = engine.submit(faulty);
  engine.submit(request("x", 10), [](const BatchPart&) {
    throw std::runtime_error("a callback's fault");
  });
  expect_error(
      ErrorKind::argument, "the prompt is empty", [&] { empty.next(); });
  expect_error(ErrorKind::argument, "a fault", [&] { bad.text(); });
  EXPECT_EQ(good.text(), expected);
}

TEST_F(EngineTest, CancelsAndForgets) {
  Engine engine(model_, tokenizer_, {.max_queued = 2});
  {
    auto dropped = engine.submit(request("x", -1));
    dropped.next();
  }
  auto cancelled = engine.submit(request("y", -1));
  cancelled.next();
  cancelled.cancel();
  std::string reason;
  while (auto part = cancelled.next()) reason = part->finish_reason;
  EXPECT_EQ(reason, "cancelled");
  while (engine.num_rows() > 0) std::this_thread::yield();
}

TEST_F(EngineTest, EndsWithAnswersUnderWay) {
  std::optional<PendingAnswer> left;
  {
    Engine engine(model_, tokenizer_);
    left = engine.submit(request("x", -1));
    left->next();
  }
  std::string reason;
  while (auto part = left->next()) reason = part->finish_reason;
  EXPECT_EQ(reason, "cancelled");
}

TEST_F(EngineTest, DeadHandles) {
  const auto expected = alone("x", 3);
  Engine engine(model_, tokenizer_);
  auto answer = engine.submit(request("x", 3));
  auto other = std::move(answer);
  expect_error(ErrorKind::argument, "moved from", [&] { answer.next(); });
  expect_error(ErrorKind::argument, "moved from", [&] { answer.cancel(); });
  EXPECT_EQ(other.text(), expected);
  EXPECT_FALSE(other.next());
  other.cancel();  // too late, and no harm
}

// Whatever may be called from any thread, by all of them at once; the thread
// sanitizer watches.
TEST_F(EngineTest, ManyThreadsSubmitAndCancel) {
  constexpr int kThreads = 32;
  constexpr int kRequests = 4;
  auto text_of = [](int i) {
    return "A beginning for all. " + std::string(1 + i % 7, 'a' + i % 26);
  };
  std::vector<std::string> expected;
  for (int i = 0; i < kThreads; ++i) {
    expected.push_back(alone(text_of(i), 3 + i % 5));
  }
  auto store = std::make_shared<PrefixStore>();
  std::atomic<int> wrong = 0;
  {
    Engine engine(
        model_, tokenizer_, {.batch = {.max_rows = 8}, .max_queued = 4});
    auto one_request = [&](int i, int n) {
      auto each = request(text_of(i), 3 + i % 5);
      if (i % 2 == 0) each.options.prefix_store = store;
      if (i % 3 == 0) each.options.draft = DraftKind::ngram;
      switch ((i + n) % 4) {
        case 0:
          engine.submit(each).next();  // and forgets it
          break;
        case 1:
          engine.submit(each).cancel();
          break;
        case 2: {
          std::string text;
          std::atomic<bool> ended = false;
          engine.submit(each, [&](const BatchPart& part) {
            text += part.part.text;
            ended = !part.part.finish_reason.empty();
          });
          while (!ended) std::this_thread::yield();
          if (text != expected[i]) ++wrong;
          break;
        }
        default:
          if (engine.submit(each).text() != expected[i]) ++wrong;
      }
      if (engine.stats().generation_tokens > 100000) ++wrong;
      if (engine.num_rows() > kThreads * kRequests) ++wrong;
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        for (int n = 0; n < kRequests; ++n) one_request(i, n);
      });
    }
    for (auto& thread : threads) thread.join();
  }
  EXPECT_EQ(wrong, 0);
}

TEST_F(EngineTest, TwoEnginesInOneProcess) {
  const auto expected = alone("Hello", 30);
  auto other_model = std::make_shared<ToyModel>(ToyOptions{.seed = 5});
  Engine one(model_, tokenizer_);
  Engine two(other_model, tokenizer_);
  auto first = one.submit(request("Hello", 30));
  auto other = two.submit(request("Hello", 30));
  EXPECT_EQ(first.text(), expected);
  EXPECT_NE(other.text(), expected);
}

}  // namespace
}  // namespace mlxlm
