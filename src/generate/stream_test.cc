#include <thread>

#include <gtest/gtest.h>

#include <mlxlm/generate.h>

#include "generate/toy.h"

namespace mlxlm {
namespace {

struct Parts {
  std::string text;
  std::vector<std::string> texts;
  std::vector<int> tokens;
  GenerationResponse last;
};

Parts walked(GenerationStream stream) {
  Parts parts;
  for (const auto& part : stream) {
    EXPECT_TRUE(parts.last.finish_reason.empty());
    parts.text += part.text;
    parts.texts.push_back(part.text);
    parts.tokens.push_back(part.token);
    parts.last = part;
  }
  EXPECT_FALSE(parts.last.finish_reason.empty());
  EXPECT_FALSE(stream.next());
  return parts;
}

ModelPtr toy_model() { return std::make_shared<ToyModel>(); }
TokenizerPtr toy_tokenizer() { return std::make_shared<ToyTokenizer>(); }

// Options whose sampler answers with a text, then other tokens.
GenerateOptions answering(const std::string& text,
                          const std::vector<int>& then = {ToyModel::kEnd}) {
  auto tokens = bytes_of(text);
  tokens.insert(tokens.end(), then.begin(), then.end());
  GenerateOptions options;
  options.sampler = scripted(tokens);
  return options;
}

Parts answer(const GenerateOptions& options) {
  return walked(stream_generate(toy_model(), toy_tokenizer(), "Hi", options));
}

TEST(StreamGenerate, EndsAtEndOfSequence) {
  auto parts = answer(answering("Hello!"));
  EXPECT_EQ(parts.text, "Hello!");
  EXPECT_EQ(parts.texts.size(), 7u);
  EXPECT_EQ(parts.last.finish_reason, "stop");
  EXPECT_EQ(parts.last.token, ToyModel::kEnd);
  EXPECT_EQ(parts.last.generation_tokens, 7);
  EXPECT_EQ(parts.last.prompt_tokens, 3);  // <s>, H, i
  EXPECT_GT(parts.last.prompt_tps, 0);
  EXPECT_GT(parts.last.generation_tps, 0);
  EXPECT_GT(parts.last.peak_memory_gb, 0);
  ASSERT_TRUE(parts.last.logprobs);
  EXPECT_EQ(parts.last.logprobs->size(), 260u);
}

TEST(StreamGenerate, EndsAtTheLimit) {
  auto options = answering("Hello!");
  options.max_tokens = 3;
  auto parts = answer(options);
  EXPECT_EQ(parts.text, "Hel");
  EXPECT_EQ(parts.texts.size(), 3u);
  EXPECT_EQ(parts.last.finish_reason, "length");
  EXPECT_EQ(parts.last.generation_tokens, 3);
}

TEST(StreamGenerate, IgnoresEndOfSequence) {
  auto options = answering("Hi", {ToyModel::kEnd, 'a', 'b', 'c'});
  options.ignore_eos = true;
  options.max_tokens = 6;
  auto parts = answer(options);
  EXPECT_EQ(parts.text, "Hiabc");
  EXPECT_EQ(parts.tokens[2], ToyModel::kEnd);
  EXPECT_EQ(parts.last.finish_reason, "length");
}

TEST(StreamGenerate, NeverHalfACharacter) {
  auto parts = answer(answering("a\u00e9\u20ac\U0001F600"));
  EXPECT_EQ(
      parts.texts,
      (std::vector<std::string>{
          "a", "", "\u00e9", "", "", "\u20ac", "", "", "", "\U0001F600", ""}));
  auto options = answering("x\xe2\x82");
  options.max_tokens = 3;
  EXPECT_EQ(answer(options).text, "x\xEF\xBF\xBD");
}

TEST(StreamGenerate, StopsAtTextsAcrossTokens) {
  auto options = answering("One. Two\nThree END four");
  options.stop_texts = {"END", "\n\n"};
  auto parts = answer(options);
  EXPECT_EQ(parts.text, "One. Two\nThree ");
  EXPECT_EQ(parts.last.finish_reason, "stop");
  EXPECT_EQ(parts.last.token, 'D');
  for (const auto& text : parts.texts) {
    EXPECT_EQ(text.find('E'), std::string::npos);
  }
}

TEST(StreamGenerate, StopTextThatDoesNotComeIsGivenOut) {
  auto options = answering("An EN");
  options.stop_texts = {"END"};
  EXPECT_EQ(answer(options).text, "An EN");
  options = answering("An ENDING");
  options.stop_texts = {"END"};
  options.max_tokens = 5;
  auto parts = answer(options);
  EXPECT_EQ(parts.text, "An EN");
  EXPECT_EQ(parts.last.finish_reason, "length");
  options = answering("An ENd. END");
  options.stop_texts = {"END", "Endless"};
  EXPECT_EQ(answer(options).text, "An ENd. ");
}

TEST(StreamGenerate, StopTextOfManyByteCharacters) {
  auto options = answering("caf\u00e9 \u20ac5 \U0001F600!");
  options.stop_texts = {"\u20ac", "\U0001F600"};
  EXPECT_EQ(answer(options).text, "caf\u00e9 ");
  // The same first byte, but another character.
  options = answering("5 \u20ad");
  options.stop_texts = {"\u20ac"};
  EXPECT_EQ(answer(options).text, "5 \u20ad");
}

TEST(StreamGenerate, StopsAtSequencesOfTokens) {
  auto options = answering("abcabd and more");
  options.stop_sequences = {{'a', 'b', 'd'}, {'z'}};
  auto parts = answer(options);
  EXPECT_EQ(parts.text, "abc");
  EXPECT_EQ(parts.last.finish_reason, "stop");
  EXPECT_EQ(parts.tokens.size(), 6u);
  // Held back, then given out.
  options = answering("xab");
  options.stop_sequences = {{'a', 'b', 'd'}};
  parts = answer(options);
  EXPECT_EQ(parts.texts, (std::vector<std::string>{"x", "", "", "ab"}));
}

TEST(StreamGenerate, AddsTheBeginningOnce) {
  auto tokens_for = [&](const std::string& prompt) {
    auto options = answering("a");
    return walked(
               stream_generate(toy_model(), toy_tokenizer(), prompt, options))
        .last.prompt_tokens;
  };
  EXPECT_EQ(tokens_for("abc"), 4);
  EXPECT_EQ(tokens_for("<s>"), 3);  // as it stands
}

TEST(StreamGenerate, WithoutTokenizer) {
  auto options = answering("ab");
  auto parts = walked(
      stream_generate(toy_model(), nullptr, std::vector<int>{1, 2}, options));
  EXPECT_EQ(parts.text, "");
  EXPECT_EQ(parts.tokens, (std::vector<int>{'a', 'b', ToyModel::kEnd}));
  EXPECT_EQ(parts.last.finish_reason, "stop");
  EXPECT_THROW(stream_generate(toy_model(), nullptr, "text", options), Error);
  options.stop_texts = {"x"};
  EXPECT_THROW(
      stream_generate(toy_model(), nullptr, std::vector<int>{1}, options),
      Error);
}

TEST(StreamGenerate, RefusesNoTokens) {
  try {
    stream_generate(toy_model(), toy_tokenizer(), "Hi", {.max_tokens = 0});
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::argument);
  }
  EXPECT_THROW(
      stream_generate(
          toy_model(), toy_tokenizer(), std::vector<int>{}, GenerateOptions{}),
      Error);
}

TEST(StreamGenerate, Cancelled) {
  auto options = answering("Hello", {'.'});
  options.max_tokens = -1;
  auto stream = stream_generate(toy_model(), toy_tokenizer(), "Hi", options);
  std::string text;
  for (int i = 0; i < 4; ++i) {
    text += stream.next()->text;
  }
  std::thread([token = options.cancel]() mutable { token.cancel(); }).join();
  auto last = stream.next();
  ASSERT_TRUE(last);
  EXPECT_EQ(last->finish_reason, "cancelled");
  EXPECT_EQ(last->token, -1);
  EXPECT_FALSE(last->logprobs);
  EXPECT_EQ(last->generation_tokens, 4);
  EXPECT_EQ(text + last->text, "Hell");
  EXPECT_FALSE(stream.next());
}

TEST(StreamGenerate, CancelledBeforeTheFirstToken) {
  GenerateOptions options;
  options.cancel.cancel();
  auto parts = answer(options);
  EXPECT_EQ(parts.last.finish_reason, "cancelled");
  EXPECT_EQ(parts.last.generation_tokens, 0);
  EXPECT_EQ(parts.last.token, -1);
  options = {};
  options.deadline = std::chrono::steady_clock::now();
  EXPECT_EQ(answer(options).last.finish_reason, "deadline");
}

TEST(StreamGenerate, HeldBackTextComesWithTheEnd) {
  auto options = answering("An EN", {'.'});
  options.stop_texts = {"END"};
  auto stream = stream_generate(toy_model(), toy_tokenizer(), "Hi", options);
  std::string text;
  for (int i = 0; i < 5; ++i) {
    text += stream.next()->text;
  }
  EXPECT_EQ(text, "An ");
  options.cancel.cancel();
  EXPECT_EQ(stream.next()->text, "EN");
}

TEST(StreamGenerate, CallbackStops) {
  int calls = 0;
  auto last = stream_generate(toy_model(),
                              toy_tokenizer(),
                              "Hi",
                              answering("Hello"),
                              [&](const GenerationResponse& part) {
                                return ++calls < 3 && !part.text.empty();
                              });
  EXPECT_EQ(calls, 3);
  EXPECT_EQ(last.finish_reason, "cancelled");
  EXPECT_EQ(last.text, "l");
  last = stream_generate(toy_model(),
                         toy_tokenizer(),
                         "Hi",
                         answering("Hello"),
                         [](const GenerationResponse&) { return true; });
  EXPECT_EQ(last.finish_reason, "stop");
}

TEST(StreamGenerate, DestroyedMidway) {
  auto model = toy_model();
  PromptCache cache;
  {
    GenerateOptions options = answering("Hello");
    options.prompt_cache = &cache;
    auto stream = stream_generate(model, toy_tokenizer(), "Hi", options);
    stream.next();
    stream.next();
    auto moved = std::move(stream);
    moved.next();
  }
  EXPECT_EQ(cache[0]->offset(), 3 + 3);
  // The model and the cache are good for more.
  auto options = answering("again");
  options.prompt_cache = &cache;
  EXPECT_EQ(generate(model, toy_tokenizer(), "Hi", options), "again");
}

TEST(StreamGenerate, NeverWalked) {
  stream_generate(toy_model(), toy_tokenizer(), "Hi", GenerateOptions{});
}

TEST(StreamGenerate, Speculative) {
  auto model = toy_model();
  GenerateOptions options{.max_tokens = 20};
  auto plain =
      walked(stream_generate(model, toy_tokenizer(), "Hi there", options));
  options.draft_model = model;
  auto fast =
      walked(stream_generate(model, toy_tokenizer(), "Hi there", options));
  EXPECT_EQ(fast.tokens, plain.tokens);
  EXPECT_EQ(fast.text, plain.text);
}

TEST(Generate, WholeText) {
  EXPECT_EQ(generate(toy_model(), toy_tokenizer(), "Hi", answering("Well.")),
            "Well.");
}

TEST(WiredLimit, ComesAndGoes) {
  ToyModel model;
  WiredLimit limit(model);
  WiredLimit inner(model);
}

}  // namespace
}  // namespace mlxlm
