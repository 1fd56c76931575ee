// Which requests wait, and which may start.
//
// Invariant: the caches of the rows that run have reserved no more than the
// budget, unless one row runs alone. What could never fit is refused before it
// is queued.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "batch/row.h"

namespace mlxlm {

class Admission {
 public:
  Admission(ModelPtr model, const BatchOptions& options);

  // Gives the row its estimate. Throws Error{memory} if it could never run,
  // Error{argument} if too many wait.
  void check(Row& row);

  void queue(std::unique_ptr<Row> row) { waiting_.push_back(std::move(row)); }
  // In front of those of its priority.
  void queue_again(std::unique_ptr<Row> row);

  // The next to start beside `running`, or null: none waits, or it must wait
  // for memory or for a prefix that is being read.
  std::unique_ptr<Row> next(const std::vector<std::unique_ptr<Row>>& running);

  // Reserves for what the rows have grown by. Returns the row to preempt if the
  // budget no longer holds all, else null.
  Row* over_budget(const std::vector<std::unique_ptr<Row>>& running);

  std::deque<std::unique_ptr<Row>>& waiting() { return waiting_; }
  const std::deque<std::unique_ptr<Row>>& waiting() const { return waiting_; }

 private:
  const CacheEstimate& estimate_of(const GenerateOptions& options);

  ModelPtr model_;
  std::uint64_t budget_bytes_;
  std::size_t max_waiting_;
  std::deque<std::unique_ptr<Row>> waiting_;
  // By max_kv_size, chunks, bits of keys and values, group size and start.
  using Storage = std::tuple<int, int, int, int, int, int>;
  std::map<Storage, CacheEstimate> estimates_;
};

}  // namespace mlxlm
