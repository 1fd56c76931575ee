// Prompts in segments.
#include <gtest/gtest.h>

#include "batch/batch_fixture.h"
#include "tests/support/expect_error.h"

namespace mlxlm {
namespace {

using Segments = std::vector<std::vector<int>>;

class SegmentsTest : public BatchTest {
 protected:
  struct Stop {
    int segment;
    std::vector<int> tokens;  // that the cache has read
    PromptCache cache;
  };

  static BatchRequest in_segments(const std::vector<std::string>& texts,
                                  GenerateOptions options) {
    BatchRequest request{.options = std::move(options)};
    for (const auto& text : texts) request.segments.push_back(bytes_of(text));
    return request;
  }

  // Beside another row.
  std::pair<Ended, std::vector<Stop>> run_beside(BatchRequest request,
                                                 const BatchOptions& options) {
    BatchGenerator batch(model_, tokenizer_, options);
    batch.insert(mlxlm::request("beside", {.max_tokens = 40}));
    std::vector<Stop> stops;
    request.on_segment = [&](int segment, const ReadCache& read) {
      EXPECT_EQ(prompt_cache_offset(read.cache),
                static_cast<int>(read.tokens.size()));
      stops.push_back({segment, read.tokens, fork_prompt_cache(read.cache)});
    };
    const RowId row = batch.insert(request);
    return {run(batch)[row], std::move(stops)};
  }
};

// With caches of every kind; reading stops where a segment ends and before the
// last token, and what is read there goes on to the same answer.
TEST_F(SegmentsTest, StopWhereSegmentsEnd) {
  for (const ToyOptions& toy : {ToyOptions{},
                                ToyOptions{.window_tokens = 8},
                                ToyOptions{.recurrent = true},
                                ToyOptions{.chunk_tokens = 16}}) {
    model_ = std::make_shared<ToyModel>(toy);
    const GenerateOptions options{.max_tokens = 12, .ignore_eos = true};
    auto expected = alone(request("A système, and a question?", options));
    auto [row, stops] = run_beside(
        in_segments({"A système", "", ", and a", " question?"}, options),
        {.interleaved_tokens = 4});
    EXPECT_EQ(row.tokens, expected.tokens);
    EXPECT_EQ(row.text, expected.text);
    ASSERT_EQ(stops.size(), 3u);
    EXPECT_EQ(stops[0].segment, 0);
    EXPECT_EQ(stops[0].tokens, bytes_of("A système"));
    EXPECT_EQ(stops[1].segment, 2);
    EXPECT_EQ(stops[1].tokens, bytes_of("A système, and a"));
    EXPECT_EQ(stops[2].segment, 3);
    EXPECT_EQ(stops[2].tokens, bytes_of("A système, and a question"));
    auto rest = request(", and a question?", options);
    rest.options.prompt_cache = &stops[0].cache;
    EXPECT_EQ(alone(rest).tokens, expected.tokens);
  }
}

// Where it matters how a prompt is cut: as alone with checkpoints there.
TEST_F(SegmentsTest, CutAsWithCheckpoints) {
  GenerateOptions options{
      .max_tokens = 12, .max_kv_size = 10, .ignore_eos = true};
  options.prompt_checkpoints = {9, 24};
  auto expected = alone(request("Some of a text that is cut", options));
  options.prompt_checkpoints.clear();
  auto [row, stops] = run_beside(
      in_segments({"Some of a", " text that is c", "ut"}, options), {});
  EXPECT_EQ(row.tokens, expected.tokens);
  EXPECT_EQ(stops.size(), 3u);
}

// A last segment of one token is read with the first draw.
TEST_F(SegmentsTest, OfOneToken) {
  auto [row, stops] =
      run_beside(in_segments({"abc", "d"}, {.max_tokens = 5}), {});
  expect_alone(request("abcd", {.max_tokens = 5}), row);
  ASSERT_EQ(stops.size(), 1u);
  EXPECT_EQ(stops[0].tokens, bytes_of("abc"));
  auto [one, none] = run_beside(in_segments({"x"}, {.max_tokens = 5}), {});
  expect_alone(request("x", {.max_tokens = 5}), one);
  EXPECT_EQ(none.size(), 0u);
}

// Segments that a store holds aren't read, and aren't told of.
TEST_F(SegmentsTest, FromAStore) {
  const std::string head(40, 's');
  GenerateOptions options{.max_tokens = 6, .ignore_eos = true};
  auto expected = alone(request(head + " and more", options));
  options.prefix_store = std::make_shared<PrefixStore>();
  for (const ToyOptions& toy : {ToyOptions{}, ToyOptions{.recurrent = true}}) {
    model_ = std::make_shared<ToyModel>(toy);
    run_beside(in_segments({head, " before"}, options), {});
    auto [row, stops] =
        run_beside(in_segments({head, " and more"}, options), {});
    ASSERT_EQ(stops.size(), 1u);
    EXPECT_EQ(stops[0].segment, 1);
    if (!toy.recurrent) {
      EXPECT_EQ(row.tokens, expected.tokens);
    }
  }
}

TEST_F(SegmentsTest, AllAtOnceAndInAnEngine) {
  const GenerateOptions options{.max_tokens = 6};
  auto expected = alone(request("one two", options));
  auto response = batch_generate(
      model_, tokenizer_, {in_segments({"one", " two"}, options)});
  EXPECT_EQ(response.texts.at(0), expected.text);
  Engine engine(model_, tokenizer_);
  auto told = in_segments({"one", " two"}, options);
  std::vector<int> segments;
  PromptCache cache;  // is another thread's to go on with
  told.on_segment = [&](int segment, const ReadCache& read) {
    segments.push_back(segment);
    if (segment == 0) cache = fork_prompt_cache(read.cache);
  };
  EXPECT_EQ(engine.submit(told).text(), expected.text);
  EXPECT_EQ(segments, (std::vector<int>{0, 1}));
  auto rest = request(" two", options);
  rest.options.prompt_cache = &cache;
  EXPECT_EQ(alone(rest).tokens, expected.tokens);
}

// What the callback throws is its row's.
TEST_F(SegmentsTest, ACallbacksFault) {
  auto faulty = in_segments({"one", " two"}, {.max_tokens = 6});
  faulty.on_segment = [](int, const ReadCache&) {
    throw std::runtime_error("no room");
  };
  BatchGenerator batch(model_, tokenizer_);
  const auto good = request("good", {.max_tokens = 15});
  const RowId bad = batch.insert(faulty);
  const RowId kept = batch.insert(good);
  auto rows = run(batch);
  EXPECT_EQ(rows[bad].reason, "error");
  EXPECT_EQ(rows[bad].error, "no room");
  expect_alone(good, rows[kept]);
}

TEST_F(SegmentsTest, Refusals) {
  BatchGenerator batch(model_, tokenizer_);
  auto both = in_segments({"a"}, {});
  both.prompt = {1};
  expect_error(ErrorKind::argument, "segments besides a prompt", [&] {
    batch.insert(both);
  });
  expect_error(ErrorKind::argument, "the prompt is empty", [&] {
    batch.insert({.segments = {{}, {}}});
  });
  expect_error(ErrorKind::argument, "vocabulary", [&] {
    batch.insert({.segments = {{1}, {ToyModel::kVocabulary}}});
  });
  EXPECT_TRUE(batch.empty());
}

}  // namespace
}  // namespace mlxlm
