// Random schedules: rows of all kinds join, leave, are cancelled and preempted,
// share caches and prefixes, and draft; each must be as it is alone, and
// nothing must be left.
#include <cstdlib>
#include <map>
#include <random>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/batch.h>

#include "batch/batch_fixture.h"
#include "batch/request_kinds.h"

namespace mlxlm {
namespace {

// On each of the models; MLXLM_SCHEDULES asks for more.
int num_schedules() {
  const char* wanted = std::getenv("MLXLM_SCHEDULES");
  return wanted != nullptr ? std::atoi(wanted) : 6;
}

constexpr std::size_t kStoreBytes = std::size_t{1} << 20;

class Schedules : public ::testing::TestWithParam<std::size_t> {
 protected:
  struct Row {
    const RequestKind* kind;
    OpenRequest open;
    CancelToken cancel;
    int leaves_after;  // tokens; -1: stays
    bool is_cancelled = false;
    std::vector<int> tokens = {};
    bool ended = false;
  };

  int number(int most) { return static_cast<int>(random_() % most); }

  // A quarter has hardly the memory for a row of 300 tokens.
  static bool is_tight(int seed) { return seed % 4 == 0; }

  BatchOptions options(int seed) {
    BatchOptions options{.max_rows = 1 + number(64),
                         .max_prompt_rows = 1 + number(8),
                         .interleaved_tokens = 1 + number(100),
                         .prefill_step_tokens = 1 + number(600)};
    if (is_tight(seed)) {
      options.memory_budget_bytes = tight_bytes() + kStoreBytes;
    }
    return options;
  }

  static int growing(int i) { return 3 + 8 * i; }

  // Little more than a row needs that grows.
  std::uint64_t tight_bytes() {
    if (least_bytes_.empty()) {
      for (int i = 0; i < RequestKinds::kCount; ++i) {
        const auto open = kinds_.open(kinds_[i], nullptr);
        least_bytes_.push_back(least_budget(kinds_.model(), open.request));
      }
    }
    std::uint64_t most = 0;
    for (int i = 0; growing(i) < RequestKinds::kCount; ++i) {
      most = std::max(most, least_bytes_[growing(i)]);
    }
    return most * 5 / 4;
  }

  static std::shared_ptr<PrefixStore> make_store() {
    return std::make_shared<PrefixStore>(
        PrefixStoreOptions{.max_bytes = kStoreBytes});
  }

  // Of tight schedules half are rows that grow beyond a step of their caches,
  // and the others fit.
  const RequestKind& any_kind(int seed) {
    if (!is_tight(seed)) return kinds_[number(RequestKinds::kCount)];
    if (number(2) == 0)
      return kinds_[growing(number(RequestKinds::kCount / 8))];
    int kind = 0;
    do {
      kind = number(RequestKinds::kCount);
    } while (least_bytes_[kind] > tight_bytes());
    return kinds_[kind];
  }

  void join(BatchGenerator& batch, int seed) {
    const RequestKind& kind = any_kind(seed);
    auto open = kinds_.open(kind, store_);
    open.request.priority = number(3) == 0 ? 1 : 0;
    open.request.tenant = std::string(1, static_cast<char>('a' + number(3)));
    const CancelToken cancel = open.request.options.cancel;
    const RowId row = batch.insert(open.request);
    rows_.emplace(row,
                  Row{&kind,
                      std::move(open),
                      cancel,
                      number(6) == 0 ? number(5) : -1,
                      number(2) == 0});
  }

  void take(const BatchPart& part) {
    Row& row = rows_.at(part.row);
    ASSERT_FALSE(row.ended);
    ASSERT_EQ(part.error, "");
    if (part.part.token >= 0) row.tokens.push_back(part.part.token);
    row.ended = !part.part.finish_reason.empty();
  }

  void leave(BatchGenerator& batch) {
    for (auto& [id, row] : rows_) {
      const int given = static_cast<int>(row.tokens.size());
      if (row.ended || row.leaves_after < 0 || given < row.leaves_after) {
        continue;
      }
      if (row.is_cancelled) {
        row.cancel.cancel();
      } else {
        batch.remove(id);
        row.ended = true;
      }
    }
  }

  // One schedule; the seed tells all of it.
  void run(int seed) {
    random_.seed(static_cast<unsigned>(seed));
    store_ = number(2) == 0 ? make_store() : nullptr;
    BatchGenerator batch(kinds_.model(), nullptr, options(seed));
    int left = 1 + number(seed % 50 == 0 ? 64 : 10);
    while (left > 0 || !batch.empty()) {
      for (; left > 0 && number(3) > 0; --left) {
        join(batch, seed);
      }
      for (const auto& part : batch.next()) take(part);
      if (HasFatalFailure()) return;
      leave(batch);
    }
    check(batch.stats(), seed);
    EXPECT_EQ(batch.num_rows(), 0u);
    rows_.clear();
    store_.reset();
  }

  void check(const BatchStats& stats, int seed) {
    std::uint64_t num_tokens = 0;
    for (const auto& [id, row] : rows_) {
      num_tokens += row.tokens.size();
      auto expected = row.kind->alone;
      if (row.leaves_after >= 0) {
        expected.resize(std::min(expected.size(), row.tokens.size()));
      }
      ASSERT_TRUE(row.ended);
      ASSERT_EQ(row.tokens, expected)
          << "row " << id << " of schedule " << seed;
    }
    EXPECT_EQ(stats.generation_tokens, num_tokens);
    num_preemptions_ += stats.preemptions;
    num_reused_ += stats.reused_tokens;
  }

  RequestKinds kinds_{toys_of_schedules()[GetParam()]};
  std::mt19937 random_;
  std::shared_ptr<PrefixStore> store_;
  std::map<RowId, Row> rows_;
  std::vector<std::uint64_t> least_bytes_;  // of each kind
  std::uint64_t num_preemptions_ = 0;
  std::uint64_t num_reused_ = 0;
};

TEST_P(Schedules, RowsAreAsAloneAndNothingIsLeft) {
  const int count = num_schedules();
  run(0);
  mx::clear_cache();
  const std::size_t before = mx::get_active_memory();
  int num_run = 0;
  // Few rows are preempted: tight schedules follow until one is.
  for (int seed = 0; seed < count || (num_preemptions_ == 0 && seed < 200);
       ++seed) {
    if (seed >= count && !is_tight(seed)) continue;
    run(seed);
    if (HasFatalFailure()) return;
    ++num_run;
  }
  mx::clear_cache();
  EXPECT_EQ(mx::get_active_memory(), before);
  EXPECT_GT(num_reused_, 0u);
  EXPECT_GT(num_preemptions_, 0u);
  std::cout << num_run << " schedules, " << num_preemptions_ << " preemptions, "
            << num_reused_ << " tokens reused\n";
}

INSTANTIATE_TEST_SUITE_P(Models,
                         Schedules,
                         ::testing::Range<std::size_t>(0, 4));

}  // namespace
}  // namespace mlxlm
