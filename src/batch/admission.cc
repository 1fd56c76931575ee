#include "batch/admission.h"

#include <algorithm>
#include <limits>

#include "batch/shared_prefixes.h"
#include "cache/rows.h"
#include "load/memory.h"

namespace mlxlm {
namespace {

constexpr std::uint64_t kNoBudget = std::numeric_limits<std::uint64_t>::max();

std::uint64_t budget_of(const BatchOptions& options) {
  if (options.memory_budget_bytes) return *options.memory_budget_bytes;
  auto available = available_memory();
  return available ? available->bytes / 10 * 9 : kNoBudget;
}

// What its cache holds at its end.
std::int64_t most_tokens(const Row& row) {
  return std::int64_t{row.num_tokens()} + row.num_left() +
         std::max(row.options().max_tokens, 0);
}

std::uint64_t bytes_of(const Row& row, std::int64_t num_tokens) {
  // Caches make room for so many at once.
  const std::int64_t steps = num_tokens / kCacheStepTokens + 1;
  return row.estimate->bytes(steps * kCacheStepTokens);
}

// How many rows of each tenant run.
std::map<std::string, int> rows_by_tenant(
    const std::vector<std::unique_ptr<Row>>& running) {
  std::map<std::string, int> counts;
  for (const auto& row : running) ++counts[row->request.tenant];
  return counts;
}

}  // namespace

Admission::Admission(ModelPtr model, const BatchOptions& options)
    : model_(std::move(model)),
      budget_bytes_(budget_of(options)),
      max_waiting_(static_cast<std::size_t>(options.max_waiting)) {}

const CacheEstimate& Admission::estimate_of(const GenerateOptions& options) {
  const auto quantization = kv_quantization(options);
  const Storage storage{options.max_kv_size,
                        options.prefill_step_tokens,
                        quantization ? quantization->key_bits : 0,
                        quantization ? quantization->value_bits : 0,
                        quantization ? quantization->group_size : 0,
                        quantization ? options.quantized_kv_start : 0};
  auto found = estimates_.find(storage);
  if (found == estimates_.end()) {
    found = estimates_.emplace(storage, CacheEstimate(*model_, options)).first;
  }
  return found->second;
}

void Admission::check(Row& row) {
  if (waiting_.size() >= max_waiting_) {
    throw Error(ErrorKind::argument,
                "there are " + std::to_string(waiting_.size()) +
                    " requests waiting, which is the limit (max_waiting)");
  }
  row.estimate = &estimate_of(row.options());
  const std::int64_t total = most_tokens(row);
  const std::uint64_t bytes = bytes_of(row, total);
  if (bytes > budget_bytes_) {
    throw Error(ErrorKind::memory,
                "the KV cache of " + std::to_string(total) +
                    " tokens needs about " + format_bytes(bytes) +
                    ", more than the batch's budget of " +
                    format_bytes(budget_bytes_) +
                    "; use a shorter prompt, fewer max_tokens, kv_bits or "
                    "max_kv_size");
  }
}

void Admission::queue_again(std::unique_ptr<Row> row) {
  row->reserved_bytes = 0;
  waiting_.push_front(std::move(row));
}

std::unique_ptr<Row> Admission::next(
    const std::vector<std::unique_ptr<Row>>& running) {
  auto counts = rows_by_tenant(running);
  auto better = [&](const auto& a, const auto& b) {
    return std::pair(-a->request.priority, counts[a->request.tenant]) <
           std::pair(-b->request.priority, counts[b->request.tenant]);
  };
  auto chosen = waiting_.end();
  for (auto each = waiting_.begin(); each != waiting_.end(); ++each) {
    if ((chosen == waiting_.end() || better(*each, *chosen)) &&
        !waits_for_prefix(**each, running)) {
      chosen = each;
    }
  }
  if (chosen == waiting_.end()) return nullptr;
  Row& row = **chosen;
  const std::uint64_t bytes = bytes_of(
      row,
      row.preemptable() ? row.num_tokens() + std::int64_t{row.num_left()}
                        : most_tokens(row));
  std::uint64_t used = 0;
  for (const auto& each : running) used += each->reserved_bytes;
  if (!running.empty() &&
      (used > budget_bytes_ || bytes > budget_bytes_ - used)) {
    return nullptr;
  }
  row.reserved_bytes = bytes;
  auto result = std::move(*chosen);
  waiting_.erase(chosen);
  return result;
}

Row* Admission::over_budget(const std::vector<std::unique_ptr<Row>>& running) {
  std::uint64_t used = 0;
  Row* last = nullptr;
  for (const auto& row : running) {
    row->reserved_bytes =
        std::max(row->reserved_bytes, bytes_of(*row, row->num_tokens() + 1));
    used += row->reserved_bytes;
    // Of the lowest priority, the one that came last.
    const bool later =
        last == nullptr || row->request.priority < last->request.priority ||
        (row->request.priority == last->request.priority && row->id > last->id);
    if (later && row->preemptable()) last = row.get();
  }
  return used > budget_bytes_ && running.size() > 1 ? last : nullptr;
}

}  // namespace mlxlm
