// Which requests wait, and which may start.
//
// Invariant: the weights, those of draft models, the prefix stores, what the
// caches of the rows that run have reserved and a pass over them come to no
// more than the budget. What
// would not fit by itself is refused before it is queued.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "batch/pass_estimate.h"
#include "batch/row.h"

namespace mlxlm {

class Admission {
 public:
  Admission(ModelPtr model, const BatchOptions& options);

  using Rows = std::vector<std::unique_ptr<Row>>;
  // Of a pass where memory is short.
  static constexpr int kLeastPromptTokens = 16;

  // Gives the row its estimates. Throws Error{memory} if it could never run, or
  // its prefix store left too little to another; Error{argument} if too many
  // wait.
  void check(Row& row, const Rows& running);

  void queue(std::unique_ptr<Row> row) { waiting_.push_back(std::move(row)); }
  // In front of those of its priority.
  void queue_again(std::unique_ptr<Row> row);

  // The next to start beside `running`, or null: none waits, or it must wait
  // for memory or for a prefix that is being read.
  std::unique_ptr<Row> next(const Rows& running);

  // Reserves for what the rows have grown by. Returns the row to preempt if the
  // budget no longer holds all, else null.
  Row* over_budget(const Rows& running);

  // What rows take together that read so many tokens of prompts in a pass, with
  // the weights and the prefix stores.
  std::uint64_t bytes(const std::vector<const Row*>& rows, int prompt_tokens);
  // Reserves what a row needs to start; of a row that was checked.
  static void reserve_start(Row& row);

  // How many prompt tokens a pass may read, `most` if memory allows.
  int prompt_tokens(const Rows& running, int most);

  // Gives memory back that MLX keeps for later, if it would break the budget.
  void settle() const;

  std::deque<std::unique_ptr<Row>>& waiting() { return waiting_; }
  const std::deque<std::unique_ptr<Row>>& waiting() const { return waiting_; }

 private:
  // Of the ways to store caches.
  struct Estimates {
    CacheEstimate cache;
    PassEstimate pass;
  };
  Estimates& estimates_of(const GenerateOptions& options);
  // Null: who drafts has no cache.
  std::shared_ptr<DraftEstimates> draft_estimates_of(
      const GenerateOptions& options);
  // Of rows that were queued: the weights of their draft models as long as one
  // of the rows is there, and their prefix stores as long as anybody has them.
  std::uint64_t draft_weight_bytes() const;
  std::uint64_t store_bytes() const;
  bool fit(const std::vector<const Row*>& rows, int prompt_tokens);
  std::uint64_t pass_bytes(const std::vector<const Row*>& rows,
                           int prompt_tokens);

  ModelPtr model_;
  std::uint64_t weight_bytes_;
  std::uint64_t budget_bytes_;
  std::size_t max_waiting_;
  std::deque<std::unique_ptr<Row>> waiting_;
  std::vector<std::weak_ptr<PrefixStore>> stores_;
  // By max_kv_size, chunks, bits of keys and values, group size and start.
  using Storage = std::tuple<int, int, int, int, int, int>;
  static Storage storage_of(const GenerateOptions& options);
  std::map<Storage, Estimates> estimates_;
  // By who drafts: the draft model or the model, whose head does.
  std::map<std::pair<const Model*, Storage>, std::weak_ptr<DraftEstimates>>
      draft_estimates_;
};

}  // namespace mlxlm
