#include "batch/admission.h"

#include <algorithm>
#include <limits>
#include <set>

#include <mlx/mlx.h>

#include "batch/shared_prefixes.h"
#include "cache/rows.h"
#include "load/memory.h"

namespace mlxlm {
namespace {

constexpr std::uint64_t kNoBudget = std::numeric_limits<std::uint64_t>::max();

std::uint64_t budget_of(const BatchOptions& options,
                        std::uint64_t weight_bytes) {
  if (options.memory_budget_bytes) return *options.memory_budget_bytes;
  auto available = available_memory();
  return available ? weight_bytes + available->bytes / 10 * 9 : kNoBudget;
}

// What its cache holds at its end.
std::int64_t most_tokens(const Row& row) {
  return std::int64_t{row.num_tokens()} + row.num_left() +
         std::max(row.options().max_tokens, 0);
}

std::uint64_t cache_bytes(const CacheEstimate& estimate,
                          const PromptCache& cache,
                          std::int64_t num_tokens,
                          bool is_taken_back) {
  // Caches make room for so many at once.
  const std::int64_t steps = num_tokens / kCacheStepTokens + 1;
  const auto bytes = estimate.most_bytes(steps * kCacheStepTokens);
  // Drafts are taken back by what a checkpoint holds on to.
  const bool has_checkpoints =
      is_taken_back && !std::ranges::all_of(cache, [](const auto& layer) {
        return layer->capabilities().always_trimmable;
      });
  return has_checkpoints ? 2 * bytes : bytes;
}

std::uint64_t cache_bytes(const Row& row, std::int64_t num_tokens) {
  const bool drafts = row.drafts != nullptr;
  auto bytes = cache_bytes(*row.cache_estimate, *row.cache, num_tokens, drafts);
  if (row.draft_estimates) {
    bytes += cache_bytes(row.draft_estimates->cache,
                         row.drafts->draft_cache(),
                         num_tokens,
                         drafts);
  }
  return bytes;
}

// Those of who drafts are as many.
std::uint64_t logits_bytes(const Row& row, const Model& model) {
  const auto bytes =
      logits_bytes(model, 1 + row.most_drafts(), row.sampling.is_greedy());
  return row.draft_estimates ? 2 * bytes : bytes;
}

std::vector<const Row*> pointers(
    const std::vector<std::unique_ptr<Row>>& rows) {
  std::vector<const Row*> all;
  for (const auto& row : rows) all.push_back(row.get());
  return all;
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
      weight_bytes_(weight_bytes(*model_) +
                    (model_->draft_head() != nullptr
                         ? model_->draft_head()->nbytes()
                         : 0)),
      budget_bytes_(budget_of(options, weight_bytes_)),
      max_waiting_(static_cast<std::size_t>(options.max_waiting)) {}

Admission::Storage Admission::storage_of(const GenerateOptions& options) {
  const auto quantization = kv_quantization(options);
  return {options.max_kv_size,
          options.prefill_step_tokens,
          quantization ? quantization->key_bits : 0,
          quantization ? quantization->value_bits : 0,
          quantization ? quantization->group_size : 0,
          quantization ? options.quantized_kv_start : 0};
}

Admission::Estimates& Admission::estimates_of(const GenerateOptions& options) {
  const auto storage = storage_of(options);
  auto found = estimates_.find(storage);
  if (found == estimates_.end()) {
    found = estimates_
                .emplace(storage,
                         Estimates{CacheEstimate(*model_, options),
                                   PassEstimate(model_, options)})
                .first;
  }
  return found->second;
}

std::shared_ptr<DraftEstimates> Admission::draft_estimates_of(
    const GenerateOptions& options) {
  if (!drafts_with_cache(options)) return nullptr;
  const bool by_model = options.draft_model && options.draft_model != model_;
  const ModelPtr& model = options.draft_model ? options.draft_model : model_;
  const bool by_head = !options.draft_model;
  auto& known =
      draft_estimates_[{by_head ? nullptr : model.get(), storage_of(options)}];
  auto estimates = known.lock();
  if (!estimates) {
    // A pass of the head is no more than one of the model.
    estimates = std::make_shared<DraftEstimates>(
        DraftEstimates{model,
                       by_model ? weight_bytes(*model) : 0,
                       by_head ? CacheEstimate::of_head(*model, options)
                               : CacheEstimate(*model, options),
                       PassEstimate(model, options)});
    known = estimates;
  }
  return estimates;
}

std::uint64_t Admission::draft_weight_bytes() const {
  std::map<ModelPtr, std::uint64_t> models;
  for (const auto& [_, each] : draft_estimates_) {
    if (auto estimates = each.lock()) {
      models[estimates->model] = estimates->weight_bytes;
    }
  }
  std::uint64_t sum = 0;
  for (const auto& [_, bytes] : models) sum += bytes;
  return sum;
}

std::uint64_t Admission::store_bytes() const {
  std::uint64_t sum = 0;
  for (const auto& each : stores_) {
    if (auto store = each.lock()) sum += store->max_bytes();
  }
  return sum;
}

std::uint64_t Admission::pass_bytes(const std::vector<const Row*>& rows,
                                    int prompt_tokens) {
  std::int64_t decoded = 0, unread = 0, uncut = 0, context = 0;
  std::uint64_t logits = 0;
  std::set<PassEstimate*> estimates, draft_estimates;
  for (const Row* row : rows) {
    context = std::max(context, row->reserved_tokens);
    logits += logits_bytes(*row, *model_);
    estimates.insert(row->pass_estimate);
    if (row->draft_estimates) {
      draft_estimates.insert(&row->draft_estimates->pass);
    }
    decoded += 1 + row->most_drafts();  // all will, at their end
    if (!row->reading()) continue;
    if (row->depends_on_chunks) {
      uncut = std::max<std::int64_t>(
          uncut, std::min(row->num_left(), row->options().prefill_step_tokens));
    } else {
      unread += row->num_left();
    }
  }
  const std::int64_t read = std::min<std::int64_t>(unread, prompt_tokens);
  // Who drafts has its passes beside the model's, with no more tokens.
  std::uint64_t bytes = logits;
  for (const auto& alike : {estimates, draft_estimates}) {
    std::uint64_t most = 0;
    for (PassEstimate* estimate : alike) {
      most = std::max(
          most, estimate->bytes(decoded + read + uncut, context, rows.size()));
    }
    bytes += most;
  }
  return bytes;
}

std::uint64_t Admission::bytes(const std::vector<const Row*>& rows,
                               int prompt_tokens) {
  std::uint64_t bytes = weight_bytes_ + draft_weight_bytes() + store_bytes();
  for (const Row* row : rows) bytes += cache_bytes(*row, row->reserved_tokens);
  return bytes + pass_bytes(rows, prompt_tokens);
}

bool Admission::fit(const std::vector<const Row*>& rows, int prompt_tokens) {
  return budget_bytes_ == kNoBudget ||
         bytes(rows, prompt_tokens) <= budget_bytes_;
}

void Admission::reserve_start(Row& row) {
  row.reserved_tokens = row.preemptable()
                            ? row.num_tokens() + std::int64_t{row.num_left()}
                            : most_tokens(row);
}

void Admission::check(Row& row, const Rows& running) {
  if (waiting_.size() >= max_waiting_) {
    throw Error(ErrorKind::argument,
                "there are " + std::to_string(waiting_.size()) +
                    " requests waiting, which is the limit (max_waiting)");
  }
  std::erase_if(draft_estimates_,
                [](const auto& each) { return each.second.expired(); });
  const std::uint64_t others_drafts = draft_weight_bytes();
  auto& estimates = estimates_of(row.options());
  row.cache_estimate = &estimates.cache;
  row.pass_estimate = &estimates.pass;
  row.draft_estimates = draft_estimates_of(row.options());
  if (budget_bytes_ == kNoBudget) return;

  const std::int64_t total = most_tokens(row);
  const std::uint64_t cache = cache_bytes(row, total);
  row.reserved_tokens = total;
  const std::uint64_t pass = pass_bytes({&row}, kLeastPromptTokens);
  row.reserved_tokens = 0;
  row.alone_bytes = cache + pass;

  const auto& store = row.options().prefix_store;
  std::erase_if(stores_, [](const auto& each) { return each.expired(); });
  const bool is_new_store =
      store && std::ranges::none_of(stores_, [&](const auto& each) {
        return each.lock() == store;
      });
  const std::uint64_t stores =
      store_bytes() + (is_new_store ? store->max_bytes() : 0);
  const std::uint64_t drafts = draft_weight_bytes();
  std::uint64_t most = row.alone_bytes;
  if (is_new_store || drafts > others_drafts) {
    for (const auto& each : running) most = std::max(most, each->alone_bytes);
    for (const auto& each : waiting_) most = std::max(most, each->alone_bytes);
  }
  if (weight_bytes_ + drafts + stores + most > budget_bytes_) {
    throw Error(
        ErrorKind::memory,
        "a row of " + std::to_string(total) + " tokens needs about " +
            format_bytes(row.alone_bytes) + " (its KV cache " +
            format_bytes(cache) + ", a pass " + format_bytes(pass) +
            ") beside the model's " + format_bytes(weight_bytes_) +
            (drafts > 0 ? ", the draft model's " + format_bytes(drafts) : "") +
            (stores > 0 ? " and the prefix stores' " + format_bytes(stores)
                        : "") +
            (most > row.alone_bytes ? ", and another row " + format_bytes(most)
                                    : "") +
            ": more than the batch's budget of " + format_bytes(budget_bytes_) +
            "; use a shorter prompt, fewer max_tokens, kv_bits, "
            "max_kv_size, a smaller prefix store or no draft model");
  }
  if (is_new_store) stores_.push_back(store);
}

void Admission::queue_again(std::unique_ptr<Row> row) {
  row->reserved_tokens = 0;
  waiting_.push_front(std::move(row));
}

std::unique_ptr<Row> Admission::next(const Rows& running) {
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
  reserve_start(row);
  auto together = pointers(running);
  together.push_back(&row);
  if (!running.empty() && !fit(together, kLeastPromptTokens)) {
    row.reserved_tokens = 0;
    return nullptr;
  }
  auto result = std::move(*chosen);
  waiting_.erase(chosen);
  return result;
}

Row* Admission::over_budget(const Rows& running) {
  Row* last = nullptr;
  for (const auto& row : running) {
    row->reserved_tokens =
        std::max<std::int64_t>(row->reserved_tokens, row->num_tokens() + 1);
    // Of the lowest priority, the one that came last.
    const bool later =
        last == nullptr || row->request.priority < last->request.priority ||
        (row->request.priority == last->request.priority && row->id > last->id);
    if (later && row->preemptable()) last = row.get();
  }
  const bool enough =
      running.size() < 2 || fit(pointers(running), kLeastPromptTokens);
  return enough ? nullptr : last;
}

int Admission::prompt_tokens(const Rows& running, int most) {
  const auto rows = pointers(running);
  while (most > kLeastPromptTokens && !fit(rows, most)) {
    most = std::max(most / 2, kLeastPromptTokens);
  }
  return most;
}

void Admission::settle() const {
  if (budget_bytes_ != kNoBudget &&
      mx::get_active_memory() + mx::get_cache_memory() > budget_bytes_) {
    mx::clear_cache();
  }
}

}  // namespace mlxlm
