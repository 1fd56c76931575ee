// Random schedules: rows of all kinds join, leave, are cancelled, share caches
// and are preempted; each must be as it is alone, and nothing must be left.
#include <cstdlib>
#include <map>
#include <random>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/batch.h>

#include "generate/toy.h"

namespace mlxlm {
namespace {

// MLXLM_SCHEDULES asks for more.
int num_schedules() {
  const char* wanted = std::getenv("MLXLM_SCHEDULES");
  return wanted != nullptr ? std::atoi(wanted) : 60;
}

constexpr int kKinds = 48;  // of requests

struct Kind {
  BatchRequest request;
  std::vector<int> alone;  // the tokens of its single run
  bool continues = false;  // the shared cache
};

class Schedules : public ::testing::Test {
 protected:
  Schedules() {
    auto shared = stream_generate(
        model_,
        nullptr,
        bytes_of("A beginning that several rows have in common. "),
        {.max_tokens = 1, .prompt_cache = &shared_});
    while (shared.next()) {
    }
    for (int i = 0; i < kKinds; ++i) kinds_.push_back(kind(i));
  }

  int number(int most) { return static_cast<int>(random_() % most); }

  // Most are short; one has 3,000 tokens.
  Kind kind(int i) {
    const int length = i == 0       ? 3000
                       : i % 8 == 0 ? 1 + number(200)
                                    : 1 + number(12);
    GenerateOptions options{.max_tokens = 1 + number(i % 6 == 0 ? 60 : 12)};
    if (i % 5 == 1) options.max_kv_size = 8 + number(40);
    if (i % 5 == 2) {
      options.kv_bits = i % 2 == 0 ? 8 : 4;
      options.kv_group_size = 32;
      options.quantized_kv_start = number(30);
    }
    if (i % 7 == 3) options.prefill_step_tokens = 1 + number(20);
    Kind kind{.request = {.options = options}};
    for (int n = 0; n < length; ++n) {
      kind.request.prompt.push_back(number(256));
    }
    kind.request.tenant = std::string(1, static_cast<char>('a' + i % 3));
    kind.continues = i % 5 == 4;
    PromptCache cache = fork_prompt_cache(shared_);
    if (kind.continues) options.prompt_cache = &cache;
    auto alone = stream_generate(model_, nullptr, kind.request.prompt, options);
    while (auto part = alone.next()) kind.alone.push_back(part->token);
    return kind;
  }

  // One schedule; the seed tells all of it.
  void run(int seed) {
    random_.seed(static_cast<unsigned>(seed));
    BatchOptions options{.max_rows = 1 + number(64),
                         .max_prompt_rows = 1 + number(8),
                         .interleaved_tokens = 1 + number(100),
                         .prefill_step_tokens = 1 + number(600)};
    // A quarter has hardly the memory for the longest row.
    if (seed % 4 == 0) options.memory_budget_bytes = 14 * kStepBytes;
    BatchGenerator batch(model_, nullptr, options);
    struct Open {
      const Kind* kind;
      std::vector<int> tokens;
      std::unique_ptr<PromptCache> cache;
      int leaves_after;  // tokens; -1: stays
      bool ended = false;
    };
    std::map<RowId, Open> rows;
    int left = 1 + number(seed % 50 == 0 ? 64 : 10);
    while (left > 0 || !batch.empty()) {
      for (; left > 0 && number(3) > 0; --left) {
        const Kind& kind = kinds_[static_cast<std::size_t>(number(kKinds))];
        BatchRequest request = kind.request;
        request.priority = number(3) == 0 ? 1 : 0;
        std::unique_ptr<PromptCache> cache;
        if (kind.continues) {
          cache = std::make_unique<PromptCache>(fork_prompt_cache(shared_));
          request.options.prompt_cache = cache.get();
        }
        const RowId row = batch.insert(std::move(request));
        rows[row] = {
            &kind, {}, std::move(cache), number(6) == 0 ? number(5) : -1};
      }
      for (const auto& [row, part, error] : batch.next()) {
        Open& open = rows.at(row);
        ASSERT_FALSE(open.ended);
        ASSERT_EQ(error, "");
        open.tokens.push_back(part.token);
        open.ended = !part.finish_reason.empty();
      }
      for (auto& [row, open] : rows) {
        const int given = static_cast<int>(open.tokens.size());
        if (!open.ended && open.leaves_after >= 0 &&
            given >= open.leaves_after) {
          batch.remove(row);
          open.ended = true;
        }
      }
    }
    for (const auto& [row, open] : rows) {
      std::vector<int> expected = open.kind->alone;
      if (open.leaves_after >= 0) {
        expected.resize(std::min(expected.size(), open.tokens.size()));
      }
      ASSERT_EQ(open.tokens, expected)
          << "row " << row << " of schedule " << seed;
    }
  }

  static constexpr std::uint64_t kStepBytes = 256 * 2 * 2 * 64 * 4;

  std::mt19937 random_{1};
  ModelPtr model_ =
      std::make_shared<ToyModel>(ToyOptions{.context_tokens = 8192});
  PromptCache shared_;
  std::vector<Kind> kinds_;
};

TEST_F(Schedules, RowsAreAsAloneAndNothingIsLeft) {
  const int count = num_schedules();
  run(0);
  mx::clear_cache();
  const std::size_t before = mx::get_active_memory();
  for (int seed = 0; seed < count && !HasFatalFailure(); ++seed) {
    run(seed);
  }
  mx::clear_cache();
  EXPECT_EQ(mx::get_active_memory(), before);
}

}  // namespace
}  // namespace mlxlm
