// Rows of a batch against the same requests alone.
#include <map>
#include <random>

#include <gtest/gtest.h>

#include <mlxlm/batch.h>

#include "batch/batch_fixture.h"
#include "tests/support/expect_error.h"

namespace mlxlm {
namespace {

TEST_F(BatchTest, RowsEqualTheirSingleRuns) {
  const std::string lengths = "The quick brown fox jumps over the lazy dog";
  std::vector<BatchRequest> requests;
  for (int i = 0; i < 9; ++i) {
    GenerateOptions options{.max_tokens = 5 + 3 * i};
    if (i % 3 == 1) options.max_kv_size = 16;
    if (i % 3 == 2) {
      options.kv_bits = i % 2 == 0 ? 8 : 4;
      options.kv_group_size = 32;
      options.quantized_kv_start = 8;
    }
    requests.push_back(request(lengths.substr(0, 1 + 5 * i), options));
  }
  BatchGenerator batch(model_, tokenizer_);
  for (const auto& each : requests) batch.insert(each);
  auto rows = run(batch);
  ASSERT_EQ(rows.size(), requests.size());
  for (std::size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(i);
    expect_alone(requests[i], rows[i]);
  }
}

TEST_F(BatchTest, RowsJoinAndLeave) {
  BatchGenerator batch(model_, tokenizer_, {.max_rows = 3});
  std::map<RowId, BatchRequest> requests;
  std::map<RowId, Ended> rows;
  std::mt19937 random(7);
  auto number = [&](int most) { return static_cast<int>(random() % most); };
  for (int step = 0; step < 400; ++step) {
    if (number(4) == 0 && requests.size() < 40) {
      auto next = request(std::string(1 + number(60), 'a' + number(26)),
                          {.max_tokens = 1 + number(20)});
      requests[batch.insert(next)] = next;
    }
    for (const auto& [row, part, error] : batch.next()) {
      if (part.token >= 0) rows[row].tokens.push_back(part.token);
      rows[row].text += part.text;
      rows[row].reason = part.finish_reason;
    }
  }
  for (auto& [row, ended] : run(batch)) rows[row] = ended;
  ASSERT_GT(requests.size(), 20u);
  for (const auto& [row, each] : requests) {
    SCOPED_TRACE(row);
    if (rows[row].tokens.size() > 0) expect_alone(each, rows[row]);
  }
  EXPECT_EQ(batch.num_rows(), 0u);
}

TEST_F(BatchTest, PromptsAreReadInChunksWhileOthersDecode) {
  BatchGenerator batch(model_,
                       tokenizer_,
                       {.interleaved_tokens = 8, .prefill_step_tokens = 1000});
  auto first = request("first", {.max_tokens = 60, .ignore_eos = true});
  auto second = request(std::string(200, 'x'), {.max_tokens = 3});
  std::vector<int> read;
  second.options.prompt_progress = [&](int done, int) { read.push_back(done); };
  batch.insert(first);
  batch.next();
  batch.insert(second);
  std::map<RowId, Ended> rows;
  int passes_without_first = 0;
  while (!batch.empty()) {
    auto parts = batch.next();
    bool has_first = false;
    for (const auto& [row, part, error] : parts) {
      has_first = has_first || row == 0;
      if (part.token >= 0) rows[row].tokens.push_back(part.token);
      rows[row].text += part.text;
      rows[row].reason = part.finish_reason;
    }
    if (rows[0].reason.empty() && !has_first) ++passes_without_first;
  }
  EXPECT_EQ(passes_without_first, 0);
  ASSERT_EQ(read.size(), 25u);
  EXPECT_EQ(read.front(), 8);
  EXPECT_EQ(read.back(), 200);
  second.options.prompt_progress = {};
  expect_alone(first, rows[0]);
  expect_alone(second, rows[1]);
}

TEST_F(BatchTest, SavedCachesContinue) {
  PromptCache cache;
  stream_generate(model_,
                  tokenizer_,
                  bytes_of("Some story"),
                  {.max_tokens = 4, .prompt_cache = &cache})
      .next();
  PromptCache one = fork_prompt_cache(cache);
  PromptCache two = fork_prompt_cache(cache);
  auto continued = request(" goes on", {.max_tokens = 12});
  continued.options.prompt_cache = &one;
  auto expected = alone(continued);
  continued.options.prompt_cache = &two;
  BatchGenerator batch(model_, tokenizer_);
  batch.insert(request("Another", {.max_tokens = 20}));
  RowId row = batch.insert(continued);
  auto rows = run(batch);
  EXPECT_EQ(rows[row].tokens, expected.tokens);
  EXPECT_EQ(prompt_cache_offset(two), prompt_cache_offset(one));
}

TEST_F(BatchTest, InputEmbeddings) {
  auto embeddings = model_->embed(mx::array({70, 71, 72, 73}));
  BatchRequest embedded{.options = {.max_tokens = 6}};
  embedded.options.input_embeddings = embeddings;
  BatchGenerator batch(model_, tokenizer_);
  batch.insert(request("other", {.max_tokens = 9}));
  batch.insert(embedded);
  auto rows = run(batch);
  expect_alone(request("FGHI", {.max_tokens = 6}), rows[1]);
  expect_alone(request("other", {.max_tokens = 9}), rows[0]);
}

TEST_F(BatchTest, ANeighboursContentChangesNoBit) {
  auto logprobs_of_first = [&](char content) {
    BatchGenerator batch(model_, tokenizer_);
    batch.insert(request("a row", {.max_tokens = 8, .ignore_eos = true}));
    batch.insert(request(std::string(30, content),
                         {.max_tokens = 8, .ignore_eos = true}));
    std::vector<mx::array> logprobs;
    while (!batch.empty()) {
      for (const auto& [row, part, error] : batch.next()) {
        if (row == 0) logprobs.push_back(*part.logprobs);
      }
    }
    return mx::stack(logprobs);
  };
  auto one = logprobs_of_first('x');
  EXPECT_EQ(one.shape(0), 8);
  EXPECT_TRUE(mx::array_equal(one, logprobs_of_first('?')).item<bool>());
}

TEST_F(BatchTest, StopsAndEnds) {
  GenerateOptions script{.max_tokens = 20};
  script.sampler = scripted(bytes_of("one STOP two"));
  script.stop_texts = {"STOP"};
  GenerateOptions ends{.max_tokens = 20};
  ends.sampler = scripted({'a', 'b', ToyModel::kEnd, 'c'});
  BatchGenerator batch(model_, tokenizer_);
  batch.insert(request("x", script));
  batch.insert(request("y", ends));
  auto rows = run(batch);
  EXPECT_EQ(rows[0].text, "one ");
  EXPECT_EQ(rows[0].reason, "stop");
  EXPECT_EQ(rows[1].text, "ab");
  EXPECT_EQ(rows[1].reason, "stop");
}

TEST_F(BatchTest, TheCacheHoldsTheTokensGivenOut) {
  PromptCache cache;
  GenerateOptions ends{.max_tokens = 20, .prompt_cache = &cache};
  ends.sampler = scripted({'a', 'b', ToyModel::kEnd, 'c'});
  BatchGenerator batch(model_, tokenizer_);
  batch.insert(request("12345", ends));
  batch.insert(request("other", {.max_tokens = 30}));
  run(batch);
  EXPECT_EQ(prompt_cache_offset(cache), 5 + 3);
}

TEST_F(BatchTest, OneRowsFaultIsItsOwn) {
  GenerateOptions faulty{.max_tokens = 20};
  faulty.logits_processors = {
      [count = 0](const mx::array&, const mx::array& logits) mutable {
        if (++count == 3) throw std::runtime_error("a fault");
        return logits;
      }};
  BatchGenerator batch(model_, tokenizer_);
  batch.insert(request("x", faulty));
  auto good = request("good", {.max_tokens = 15});
  batch.insert(good);
  auto rows = run(batch);
  EXPECT_EQ(rows[0].reason, "error");
  EXPECT_EQ(rows[0].error, "a fault");
  EXPECT_EQ(rows[0].tokens.size(), 2u);
  expect_alone(good, rows[1]);
}

TEST_F(BatchTest, CancelDeadlineAndRemoval) {
  GenerateOptions endless{.max_tokens = -1, .ignore_eos = true};
  GenerateOptions late = endless;
  late.deadline = std::chrono::steady_clock::now();
  BatchGenerator batch(model_, tokenizer_);
  RowId cancelled = batch.insert(request("a", endless));
  RowId removed =
      batch.insert(request("b", {.max_tokens = -1, .ignore_eos = true}));
  RowId expired = batch.insert(request("c", late));
  auto good = request("d", {.max_tokens = 15});
  RowId kept = batch.insert(good);
  batch.next();
  batch.remove(removed);
  expect_error(ErrorKind::argument, "no row 1", [&] { batch.remove(removed); });
  endless.cancel.cancel();
  auto rows = run(batch);
  EXPECT_EQ(rows[cancelled].reason, "cancelled");
  EXPECT_EQ(rows.count(removed), 0u);
  EXPECT_EQ(rows.count(expired), 0u);  // ended in the first pass
  expect_alone(good, rows[kept]);
}

TEST_F(BatchTest, MemoryIsReservedAndRowsArePreempted) {
  const auto least =
      least_budget(model_, request(std::string(200, 'x'), {.max_tokens = 100}));
  BatchGenerator batch(
      model_, tokenizer_, {.memory_budget_bytes = least * 3 / 2});
  expect_error(ErrorKind::memory, "more than the batch's budget", [&] {
    batch.insert(request("x", {.max_tokens = 1500}));
  });
  std::vector<BatchRequest> requests;
  for (int i = 0; i < 4; ++i) {
    requests.push_back(request(std::string(200, 'a' + i),
                               {.max_tokens = 100, .ignore_eos = true}));
    batch.insert(requests.back());
  }
  auto rows = run(batch);
  EXPECT_GT(batch.stats().preemptions, 0u);
  for (int i = 0; i < 4; ++i) {
    SCOPED_TRACE(i);
    expect_alone(requests[i], rows[i]);
  }
}

// Also where the token drawn last ends a row that is to be preempted.
TEST_F(BatchTest, CachesOfPreemptedRowsAreWhole) {
  const auto row = request(std::string(248, 'x'), {.max_tokens = 12});
  const auto budget =
      std::max(tight_budget(model_, {row, row}), least_budget(model_, row));
  std::uint64_t num_preemptions = 0;
  for (int max_tokens = 1; max_tokens < 12; ++max_tokens) {
    BatchGenerator batch(model_, tokenizer_, {.memory_budget_bytes = budget});
    std::vector<PromptCache> caches(2);
    for (auto& cache : caches) {
      batch.insert(request(std::string(248, 'a'),
                           {.max_tokens = max_tokens,
                            .prompt_cache = &cache,
                            .ignore_eos = true}));
    }
    run(batch);
    num_preemptions += batch.stats().preemptions;
    for (const auto& cache : caches) {
      EXPECT_EQ(prompt_cache_offset(cache), 248 + max_tokens);
    }
  }
  EXPECT_GT(num_preemptions, 0u);
}

TEST_F(BatchTest, PriorityAndTurns) {
  BatchGenerator batch(model_, tokenizer_, {.max_rows = 2});
  auto tenant = [&](const char* name, int priority, int max_tokens = 3) {
    BatchRequest each =
        request("x", {.max_tokens = max_tokens, .ignore_eos = true});
    each.tenant = name;
    each.priority = priority;
    return batch.insert(each);
  };
  RowId first_a = tenant("a", 0, 9);
  RowId second_a = tenant("a", 0);
  RowId first_b = tenant("b", 0);
  RowId urgent = tenant("c", 1);
  std::vector<RowId> order;
  while (!batch.empty()) {
    for (const auto& part : batch.next()) {
      if (!part.part.finish_reason.empty()) order.push_back(part.row);
    }
  }
  EXPECT_EQ(order, (std::vector<RowId>{urgent, first_b, first_a, second_a}));
}

TEST_F(BatchTest, ExtractedCachesContinueAlone) {
  auto whole = request("A beginning", {.max_tokens = 20, .ignore_eos = true});
  auto expected = alone(whole);
  BatchGenerator batch(model_, tokenizer_);
  RowId row = batch.insert(whole);
  batch.insert(request("other", {.max_tokens = 30}));
  std::vector<int> tokens;
  while (tokens.size() < 7) {
    for (const auto& part : batch.next()) {
      if (part.row == row) tokens.push_back(part.part.token);
    }
  }
  auto [cache, read] = batch.extract_cache(row);
  EXPECT_EQ(prompt_cache_offset(cache), static_cast<int>(read.size()));
  std::vector<int> all = whole.prompt;
  all.insert(all.end(), tokens.begin(), tokens.end());
  EXPECT_EQ(read, all);
  EXPECT_EQ(run(batch)[row].tokens.size(), 13u);
  trim_prompt_cache(cache, 1);
  auto rest =
      alone({{all.back()},
             {.max_tokens = 13, .prompt_cache = &cache, .ignore_eos = true}});
  tokens.insert(tokens.end(), rest.tokens.begin(), rest.tokens.end());
  EXPECT_EQ(tokens, expected.tokens);
}

TEST_F(BatchTest, RefusesWhatCantRun) {
  BatchGenerator batch(model_, tokenizer_, {.max_waiting = 1});
  expect_error(
      ErrorKind::argument, "the prompt is empty", [&] { batch.insert({}); });
  expect_error(ErrorKind::argument, "max_tokens is 0", [&] {
    batch.insert(request("x", {.max_tokens = 0}));
  });
  expect_error(
      ErrorKind::argument, "no row 5", [&] { batch.extract_cache(5); });
  batch.insert(request("x"));
  expect_error(
      ErrorKind::argument, "max_waiting", [&] { batch.insert(request("x")); });
  batch.close();
  EXPECT_TRUE(batch.empty());
  expect_error(
      ErrorKind::argument, "closed", [&] { batch.insert(request("x")); });
  expect_error(ErrorKind::argument, "max_rows is 0", [&] {
    BatchGenerator(model_, tokenizer_, {.max_rows = 0});
  });
}

// Whatever is refused or fails, a row beside it goes on as it was.
TEST_F(BatchTest, OthersGoOnBesideErrors) {
  auto good = request("good", {.max_tokens = 25});
  BatchGenerator batch(
      model_, tokenizer_, {.memory_budget_bytes = std::uint64_t{1} << 22});
  batch.insert(good);
  batch.next();
  GenerateOptions combined;
  combined.draft = DraftKind::mtp;
  expect_error(ErrorKind::unsupported, "has no draft head", [&] {
    batch.insert(request("x", combined));
  });
  expect_error(ErrorKind::memory, "of 100007 tokens needs about", [&] {
    batch.insert(request(std::string(100000, 'x'), {.max_tokens = 7}));
  });
  expect_error(ErrorKind::argument, "max_tokens is 0", [&] {
    batch.insert(request("x", {.max_tokens = 0}));
  });
  expect_error(ErrorKind::argument, "vocabulary", [&] {
    batch.insert({.prompt = {ToyModel::kVocabulary}});
  });
  const RowId removed = batch.insert(request("x"));
  batch.remove(removed);
  expect_error(ErrorKind::argument, "no row 1", [&] { batch.remove(removed); });
  BatchGenerator moved = std::move(batch);
  expect_error(ErrorKind::argument, "moved from", [&] { batch.next(); });
  auto rows = run(moved);
  // The part of the first pass was taken above.
  EXPECT_EQ(rows.size(), 1u);
  expect_alone(good, rows[0]);
}

TEST_F(BatchTest, PromptsBeyondTheContextAreToldOf) {
  std::string logged;
  set_log_handler([&](LogLevel, std::string_view text) { logged = text; });
  BatchGenerator batch(model_, tokenizer_);
  batch.insert(request(std::string(513, 'x'), {.max_tokens = 1}));
  set_log_handler({});
  EXPECT_NE(logged.find("513 tokens, more than the 512"), std::string::npos)
      << logged;
}

TEST_F(BatchTest, AllAtOnce) {
  std::vector<BatchRequest> requests{request("one", {.max_tokens = 4}),
                                     request("another", {.max_tokens = 7})};
  auto response = batch_generate(
      model_,
      tokenizer_,
      requests,
      {.prompt_caches = true, .token_ids = true, .logprobs = true});
  for (int i : {0, 1}) {
    auto expected = alone(requests[i]);
    EXPECT_EQ(response.texts[i], expected.text);
    EXPECT_EQ(response.token_ids[i], expected.tokens);
    ASSERT_EQ(response.logprobs[i].size(), expected.tokens.size());
    EXPECT_LT(response.logprobs[i][0], 0.0f);
    EXPECT_EQ(
        prompt_cache_offset(response.caches[i]),
        static_cast<int>(requests[i].prompt.size() + expected.tokens.size()));
  }
  EXPECT_EQ(response.stats.prompt_tokens, 3u + 7u);
  EXPECT_EQ(response.stats.generation_tokens, 4u + 7u);
}

}  // namespace
}  // namespace mlxlm
