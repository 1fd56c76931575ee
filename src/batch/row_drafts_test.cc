// Rows that draft against the same requests alone, without drafts.
#include <climits>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/batch.h>

#include "batch/batch_fixture.h"
#include "tests/support/expect_error.h"

namespace mlxlm {
namespace {

const char kRepeats[] = "one two three, one two four, one two three, ";
constexpr int kRepeatsTokens = sizeof(kRepeats) - 1;

// What a draft model is asked to read at a time.
class CountingModel : public ToyModel {
 public:
  using ToyModel::ToyModel;

  mx::array forward(const mx::array& tokens,
                    const PromptCache& cache,
                    const std::optional<mx::array>& embeddings) override {
    // Estimates, which aren't evaluated, are of zeros.
    if (mx::max(tokens).item<int>() > 0) sizes.push_back(tokens.shape(1));
    return ToyModel::forward(tokens, cache, embeddings);
  }

  std::vector<int> sizes;
};

class RowDraftsTest : public BatchTest {
 protected:
  // A model whose head and `draft_` are often right.
  void make_models(ToyOptions toy) {
    toy.head_noise = 0.03f;
    model_ = std::make_shared<ToyModel>(toy);
    toy.head_noise.reset();
    toy.noise = 0.03f;
    draft_ = std::make_shared<CountingModel>(toy);
  }

  void SetUp() override { make_models({.seed = 11}); }

  BatchRequest drafting(BatchRequest request,
                        DraftKind kind,
                        std::optional<int> count = 3) const {
    request.options.draft = kind;
    if (kind == DraftKind::model) request.options.draft_model = draft_;
    request.options.num_draft_tokens = count;
    return request;
  }

  // The tokens of all rows, and the statistics of the first.
  std::map<RowId, std::vector<int>> tokens_of(BatchGenerator& batch) {
    std::map<RowId, std::vector<int>> tokens;
    while (!batch.empty()) {
      for (const auto& [row, part, error] : batch.next()) {
        EXPECT_EQ(error, "");
        if (part.token >= 0) tokens[row].push_back(part.token);
        if (row == 0 && part.speculation) statistics_ = part.speculation;
      }
    }
    return tokens;
  }

  std::shared_ptr<CountingModel> draft_;
  std::optional<SpeculationStatistics> statistics_;
};

class EveryDraft : public RowDraftsTest,
                   public ::testing::WithParamInterface<DraftKind> {};

std::string name_of(const ::testing::TestParamInfo<DraftKind>& info) {
  return info.param == DraftKind::ngram   ? "Ngram"
         : info.param == DraftKind::model ? "Model"
                                          : "Head";
}

INSTANTIATE_TEST_SUITE_P(Drafts,
                         EveryDraft,
                         ::testing::Values(DraftKind::ngram,
                                           DraftKind::model,
                                           DraftKind::mtp),
                         name_of);

// Rows that draft, with rows that don't, over every kind of cache: the tokens
// are those of the same requests alone and without drafts.
TEST_P(EveryDraft, ChangesNothing) {
  for (auto toy : {ToyOptions{.seed = 12, .window_tokens = 12},
                   ToyOptions{.seed = 15, .recurrent = true}}) {
    make_models(toy);
    std::vector<BatchRequest> requests;
    for (int i = 0; i < 6; ++i) {
      GenerateOptions options{.max_tokens = 10 + 2 * i, .ignore_eos = true};
      if (i % 4 == 1) options.max_kv_size = 24;
      if (i % 4 == 2) {
        options.kv_bits = 8;
        options.kv_group_size = 32;
        options.quantized_kv_start = 53;
      }
      if (i % 4 == 3) {
        options.logits_processors =
            make_logits_processors({.repetition_penalty = 1.1});
      }
      requests.push_back(request(std::string(kRepeats).substr(i), options));
    }
    BatchGenerator batch(model_, tokenizer_);
    for (std::size_t i = 0; i < requests.size(); ++i) {
      if (i == 5) {
        batch.insert(requests[i]);
        continue;
      }
      batch.insert(drafting(
          requests[i],
          GetParam(),
          i > 2 ? std::optional<int>(static_cast<int>(i) - 1) : std::nullopt));
    }
    auto rows = run(batch);
    for (std::size_t i = 0; i < requests.size(); ++i) {
      SCOPED_TRACE(i);
      expect_alone(requests[i], rows[i]);
    }
  }
}

TEST_P(EveryDraft, IsCutAtTheEnd) {
  const auto whole =
      alone(request(kRepeats, {.max_tokens = 40, .ignore_eos = true}));
  for (int count : {1, 13, 16}) {
    PromptCache cache;
    GenerateOptions options{
        .max_tokens = 40, .prompt_cache = &cache, .ignore_eos = true};
    const bool limited = count % 2 == 0;
    if (limited) {
      options.max_tokens = count;
    } else {
      options.stop_sequences = {
          {whole.tokens.begin(), whole.tokens.begin() + count}};
    }
    BatchGenerator batch(model_, tokenizer_);
    batch.insert(drafting(request(kRepeats, options), GetParam(), 5));
    batch.insert(request("another", {.max_tokens = 30, .ignore_eos = true}));
    const auto tokens = tokens_of(batch)[0];
    SCOPED_TRACE(count);
    EXPECT_EQ(tokens.size(), static_cast<std::size_t>(count));
    EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), whole.tokens.begin()));
    for (const auto& layer : cache) {
      EXPECT_EQ(layer->offset(), kRepeatsTokens + count);
    }
    ASSERT_TRUE(statistics_);
    EXPECT_EQ(statistics_->draft, GetParam());
    if (count > 10) {
      EXPECT_GT(statistics_->accepted_tokens, 0);
    }
    // It goes on as one that was read alone, in a batch and alone.
    auto text = bytes_of(kRepeats);
    text.insert(text.end(), tokens.begin(), tokens.end());
    for (int token : bytes_of(" and")) text.push_back(token);
    const auto expected = alone({text, {.max_tokens = 5}}).tokens;
    auto rest = drafting(request(" and", {.max_tokens = 5}), GetParam());
    auto copy = fork_prompt_cache(cache);
    rest.options.prompt_cache = &copy;
    EXPECT_EQ(alone(rest).tokens, expected);
    BatchGenerator next(model_, tokenizer_);
    rest.options.prompt_cache = &cache;
    next.insert(rest);
    EXPECT_EQ(tokens_of(next)[0], expected);
  }
}

// Of a seed, too: the tokens are those without drafts.
TEST_P(EveryDraft, KeepsSeeds) {
  auto seeded = [&](int seed) {
    auto one = request(kRepeats, {.max_tokens = 16, .ignore_eos = true});
    one.options.sampler =
        with_seed(make_sampler({.temperature = 0.8, .top_p = 0.95}), seed);
    one.options.logits_processors =
        make_logits_processors({.repetition_penalty = 1.1});
    return one;
  };
  BatchGenerator batch(model_, tokenizer_);
  for (int i = 0; i < 4; ++i) {
    batch.insert(drafting(seeded(i), GetParam(), 1 + i));
  }
  auto rows = tokens_of(batch);
  for (int i = 0; i < 4; ++i) {
    const auto expected = alone(seeded(i)).tokens;
    EXPECT_EQ(rows[i], expected);
    EXPECT_EQ(alone(drafting(seeded(i), GetParam())).tokens, expected);
  }
}

// However a row ends, its cache has what was given out.
TEST_P(EveryDraft, CachesAreWholeWhereRowsLeave) {
  const std::string text = kRepeats;
  for (bool cancels : {true, false}) {
    for (int after : {0, 2, 7}) {
      PromptCache cache;
      auto row =
          drafting(request(text, {.prompt_cache = &cache, .ignore_eos = true}),
                   GetParam());
      row.options.prefill_step_tokens = 10;
      BatchGenerator batch(model_, tokenizer_, {.prefill_step_tokens = 10});
      const RowId id = batch.insert(row);
      int num_given = 0;
      for (int i = 0; i < after; ++i) {
        for (const auto& part : batch.next()) num_given += part.part.token >= 0;
      }
      const auto read = batch.extract_cache(id);
      EXPECT_EQ(prompt_cache_offset(read.cache),
                static_cast<int>(read.tokens.size()));
      if (cancels) {
        row.options.cancel.cancel();
        batch.next();
      } else {
        batch.remove(id);
      }
      EXPECT_TRUE(batch.empty());
      const int num_read = std::min(10 * after, kRepeatsTokens);
      for (const auto& layer : cache) {
        EXPECT_EQ(layer->offset(), num_read + num_given);
      }
    }
  }
}

// What networks read for several rows they read together.
TEST_F(RowDraftsTest, DraftsAreMadeTogether) {
  auto passes = [&](int num_rows) {
    draft_->sizes.clear();
    BatchGenerator batch(model_, tokenizer_);
    for (int i = 0; i < num_rows; ++i) {
      batch.insert(
          drafting(request(kRepeats, {.max_tokens = 24, .ignore_eos = true}),
                   DraftKind::model,
                   3));
    }
    for (const auto& [_, tokens] : tokens_of(batch)) {
      EXPECT_EQ(tokens.size(), 24u);
    }
    return draft_->sizes.size();
  };
  const auto one = passes(1);
  EXPECT_GT(one, 10u);
  EXPECT_LT(passes(5), one + 8);  // each reads its own prompt
}

// A long prompt delays the others by no more than its share of a pass.
TEST_F(RowDraftsTest, DraftModelsReadPromptsInPieces) {
  BatchGenerator batch(model_, tokenizer_, {.interleaved_tokens = 20});
  batch.insert(request("first", {.max_tokens = 30, .ignore_eos = true}));
  for (int i = 0; i < 3; ++i) batch.next();
  const auto one = request(std::string(200, 'x') + kRepeats,
                           {.max_tokens = 8, .ignore_eos = true});
  const RowId row = batch.insert(drafting(one, DraftKind::model));
  draft_->sizes.clear();
  EXPECT_EQ(tokens_of(batch)[row], alone(one).tokens);
  EXPECT_GT(draft_->sizes.size(), 12u);
  EXPECT_LE(*std::ranges::max_element(draft_->sizes), 21);
}

// The caches of who drafts are stored and taken with the model's.
TEST_F(RowDraftsTest, PrefixesAreShared) {
  for (auto kind : {DraftKind::model, DraftKind::mtp}) {
    auto store = std::make_shared<PrefixStore>();
    auto row = [&](const std::string& end) {
      auto one =
          request(kRepeats + end, {.max_tokens = 12, .ignore_eos = true});
      one.options.prefix_store = store;
      return drafting(one, kind);
    };
    auto plain = [&](const std::string& end) {
      return alone(
          request(kRepeats + end, {.max_tokens = 12, .ignore_eos = true}));
    };
    BatchGenerator batch(model_, tokenizer_);
    batch.insert(row("a"));
    batch.insert(row("b"));  // waits for the other
    auto rows = tokens_of(batch);
    EXPECT_EQ(rows[0], plain("a").tokens);
    EXPECT_EQ(rows[1], plain("b").tokens);
    EXPECT_EQ(batch.stats().reused_tokens,
              static_cast<std::uint64_t>(kRepeatsTokens));
    // Alone what the batch has stored, and back.
    auto after = row("c");
    int reused = 0;
    for (const auto& part :
         stream_generate(model_, tokenizer_, after.prompt, after.options)) {
      reused = part.reused_tokens;
    }
    EXPECT_EQ(reused, kRepeatsTokens);
    batch.insert(row("cd"));
    EXPECT_EQ(tokens_of(batch)[2], plain("cd").tokens);
    EXPECT_EQ(batch.stats().reused_tokens,
              static_cast<std::uint64_t>(2 * kRepeatsTokens + 1));
  }
}

TEST_F(RowDraftsTest, FaultsOfADraftAreItsRows) {
  auto good = request(kRepeats, {.max_tokens = 9, .ignore_eos = true});
  auto bad = good;
  bad.options.logits_processors = {
      [](const mx::array& tokens, const mx::array& logits) {
        if (tokens.size() > kRepeatsTokens + 1) {
          throw Error(ErrorKind::argument, "no more");
        }
        return logits;
      }};
  BatchGenerator batch(model_, tokenizer_);
  batch.insert(drafting(bad, DraftKind::model));
  batch.insert(drafting(good, DraftKind::model));
  auto rows = run(batch);
  EXPECT_EQ(rows[0].reason, "error");
  EXPECT_EQ(rows[0].error, "no more");
  expect_alone(good, rows[1]);
}

TEST_F(RowDraftsTest, RefusesWhatOneAloneDoes) {
  BatchGenerator batch(model_, tokenizer_);
  auto both = drafting(request("x"), DraftKind::model);
  both.options.draft = DraftKind::ngram;
  expect_error(
      ErrorKind::argument, "leave one out", [&] { batch.insert(both); });
  auto none = drafting(request("x"), DraftKind::mtp, 0);
  expect_error(ErrorKind::argument, "num_draft_tokens is 0", [&] {
    batch.insert(none);
  });
  auto other = drafting(request("x"), DraftKind::model);
  PromptCache cache = model_->make_cache(0);
  for (const auto& layer :
       std::make_shared<ToyModel>(ToyOptions{.num_layers = 1})->make_cache(0)) {
    cache.push_back(layer);
  }
  other.options.prompt_cache = &cache;
  expect_error(
      ErrorKind::argument, "has 3 layers where", [&] { batch.insert(other); });
  EXPECT_TRUE(batch.empty());
}

// A number beyond all tokens is as many as there are.
TEST_F(RowDraftsTest, AsManyDraftsAsTokens) {
  const auto one = request(kRepeats, {.max_tokens = 9, .ignore_eos = true});
  const auto many = drafting(one, DraftKind::model, INT_MAX);
  BatchGenerator batch(
      model_, tokenizer_, {.memory_budget_bytes = least_budget(model_, many)});
  batch.insert(many);
  EXPECT_EQ(tokens_of(batch)[0], alone(one).tokens);
}

// The weights of a draft model once, caches and passes for each row.
TEST_F(RowDraftsTest, MemoryOfDraftModelsIsCounted) {
  const auto one = request(std::string(300, 'x'), {.max_tokens = 200});
  const auto drafted = drafting(one, DraftKind::model);
  std::uint64_t weights = 0;
  for (const auto& each : draft_->parameters()) weights += each.value.nbytes();
  const auto plain_bytes = least_budget(model_, one);
  const auto bytes = least_budget(model_, drafted);
  EXPECT_GT(bytes, plain_bytes + weights);
  BatchGenerator batch(model_, tokenizer_, {.memory_budget_bytes = bytes});
  batch.insert(drafted);
  batch.insert(drafted);
  batch.remove(0);
  batch.remove(1);
  BatchGenerator tight(
      model_, tokenizer_, {.memory_budget_bytes = bytes * 9 / 10});
  expect_error(ErrorKind::memory, ", the draft model's 198 kB", [&] {
    tight.insert(drafted);
  });
  tight.insert(one);  // what was refused counts no more
}

}  // namespace
}  // namespace mlxlm
