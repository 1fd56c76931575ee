// BatchGenerator: passes, and what they give out.
#include <algorithm>
#include <chrono>
#include <iterator>

#include <mlx/mlx.h>

#include <mlxlm/batch.h>

#include "batch/admission.h"
#include "batch/draft_rows.h"
#include "batch/pass.h"
#include "batch/row.h"
#include "batch/shared_prefixes.h"
#include "cache/settle.h"
#include "core/log.h"
#include "generate/interruption.h"
#include "generate/options.h"
#include "generate/under_way.h"
#include "kernels/mlx_compat/gpu_memory.h"

namespace mlxlm {
namespace {

using Clock = std::chrono::steady_clock;
using Rows = std::vector<std::unique_ptr<Row>>;

void check_request(const BatchRequest& request, Model& model) {
  draft_kind(model, request.options);
  check_options(request.prompt, model, request.options);
  check_max_tokens(request.options);
  check_drafts(request.prompt, request.options);
}

// A cache that came with a row is looked at before the row is read with
// others: an unevaluated pass finds what doesn't fit.
void check_given_cache(const Row& row, Model& model) {
  if (row.first_offset == 0) return;
  const auto token = token_row({0});
  auto read = model.forward(token, fork_prompt_cache(*row.cache));
  if (!row.drafts) return;
  const auto of_drafts = fork_prompt_cache(row.drafts->draft_cache());
  if (row.options().draft_model) {
    row.options().draft_model->forward(token, of_drafts);
  } else if (row.options().draft == DraftKind::mtp) {
    model.draft_head()->forward(token, model.embed(token), of_drafts);
  }
}

}  // namespace

class BatchGenerator::Impl {
 public:
  Impl(ModelPtr model, TokenizerPtr tokenizer, const BatchOptions& options)
      : model_(std::move(model)),
        tokenizer_(std::move(tokenizer)),
        options_(options),
        admission_(model_, options) {
    check_at_least("max_rows", options.max_rows, 1);
    check_at_least("max_prompt_rows", options.max_prompt_rows, 1);
    check_at_least("max_waiting", options.max_waiting, 1);
    check_at_least("interleaved_tokens", options.interleaved_tokens, 1);
    check_at_least("prefill_step_tokens", options.prefill_step_tokens, 1);
  }

  RowId insert(BatchRequest request) {
    if (closed_) {
      throw Error(ErrorKind::argument, "the batch generator is closed");
    }
    auto ends = join_segments(request);
    check_request(request, *model_);
    auto row = std::make_unique<Row>(next_id_,
                                     std::move(request),
                                     std::move(ends),
                                     model_,
                                     tokenizer_.get());
    check_quantization(row->layers(), row->to_read.length, row->options());
    warn_of_length(*model_, row->first_offset + row->to_read.length);
    check_given_cache(*row, *model_);
    admission_.check(*row, running_);
    admission_.queue(std::move(row));
    return next_id_++;
  }

  std::vector<BatchPart> next() {
    under_way_.go_on_here();
    std::vector<BatchPart> out;
    end_interrupted(admission_.waiting(), out);
    end_interrupted(running_, out);
    preempt(out);
    admit();
    const auto start = Clock::now();
    draft(out);
    // What the pass before has drawn is waited for while the next one runs.
    std::vector<Drawn> drawn;
    for (const auto& row : running_) {
      if (row->drawn) {
        drawn.push_back(
            {row.get(), *row->drawn, row->drawn_with, row->drawn_at});
      }
    }
    const int prompt_tokens = prompt_tokens_now();
    auto parts = plan_pass(running_, prompt_tokens);
    auto failures = run(parts);
    if (failures.empty()) failures = read_ahead(running_, prompt_tokens);
    give_out(drawn, out);
    check_drafts(parts, failures, out);
    if (failures.empty()) tell_of_segments(parts, failures);
    fail(failures, out);
    count(parts, std::chrono::duration<double>(Clock::now() - start).count());
    let_go_of_ended(running_);
    return out;
  }

  bool empty() const {
    return running_.empty() && admission_.waiting().empty();
  }
  std::size_t num_rows() const {
    return running_.size() + admission_.waiting().size();
  }

  void remove(RowId id) {
    auto is_row = [&](const auto& row) { return row->id == id; };
    for (const auto& row : running_) {
      if (is_row(row)) finish(*row);
    }
    if (std::erase_if(running_, is_row) +
            std::erase_if(admission_.waiting(), is_row) ==
        0) {
      throw_no_row(id);
    }
  }

  ReadCache extract_cache(RowId id) const {
    for (const auto& row : running_) {
      if (row->id == id) return read_cache(*row);
    }
    for (const auto& row : admission_.waiting()) {
      if (row->id == id) return read_cache(*row);
    }
    throw_no_row(id);
  }

  BatchStats stats() const {
    BatchStats stats = stats_;
    stats.peak_memory_gb = static_cast<double>(mx::get_peak_memory()) / 1e9;
    return stats;
  }

  void close() {
    closed_ = true;
    running_.clear();
    admission_.waiting().clear();
  }

 private:
  [[noreturn]] static void throw_no_row(RowId id) {
    throw Error(ErrorKind::argument,
                "the batch has no row " + std::to_string(id) +
                    "; it has ended, was removed or never was");
  }

  static bool ended(const Row& row) { return row.answer.ended(); }

  static void fail(const std::vector<RowFailure>& failures,
                   std::vector<BatchPart>& out) {
    for (const auto& [row, message] : failures) {
      row->failed = true;
      if (!ended(*row)) {
        out.push_back({row->id, row->answer.end("error"), message});
      }
    }
  }

  // A row that leaves: its caller's cache holds every token that was given out,
  // its store what was read.
  static void finish(Row& row) {
    if (row.failed) return;
    try {
      if (row.drafts && row.options().prompt_cache != nullptr) {
        row.drafts->read_rest();
        row.drafts->level();
      }
      store_text(row);
    } catch (const std::exception& error) {
      log_warning("the cache of a row of the batch couldn't be completed: " +
                  std::string(error.what()));
    }
  }

  static ReadCache read_cache(const Row& row) {
    return {fork_prompt_cache(*row.cache), row.read_tokens()};
  }

  template <class Container>
  static void let_go_of_ended(Container& rows) {
    std::erase_if(rows, [](const auto& row) {
      if (ended(*row)) finish(*row);
      return ended(*row);
    });
  }

  template <class Container>
  static void end_interrupted(Container& rows, std::vector<BatchPart>& out) {
    for (const auto& row : rows) {
      const auto reason = interruption_of(row->options());
      if (!reason.empty()) out.push_back({row->id, row->answer.end(reason)});
    }
    let_go_of_ended(rows);
  }

  // Where a draft would follow the token under way, it is waited for; rows of
  // which all tokens are known propose what the pass is to check.
  void draft(std::vector<BatchPart>& out) {
    std::vector<Row*> proposing;
    for (const auto& row : running_) {
      if (!row->drafts || row->reading()) continue;
      auto& drafts = *row->drafts;
      drafts.begin_answer();
      if (row->drawn && drafts.wants(row->tokens_left() - 1)) {
        const auto drawn = *std::exchange(row->drawn, std::nullopt);
        give_out(*row, drawn, out);
        row->sampling.add_history(drawn.token);
        drafts.add(row->given.back(), false);
      }
      if (!row->drawn && !ended(*row)) proposing.push_back(row.get());
    }
    fail(propose_drafts(proposing), out);
    let_go_of_ended(running_);
  }

  // Gives out what stands of the drafts, and takes the rest back.
  void check_drafts(std::vector<PassPart>& parts,
                    std::vector<RowFailure>& failures,
                    std::vector<BatchPart>& out) {
    for (PassPart& part : parts) {
      if (!part.logits) continue;
      Row& row = *part.row;
      try {
        int num_given = 0;
        for (auto& step : row.drafts->check(*part.logits, row.sampling)) {
          give_out(row, std::move(step), out);
          ++num_given;
          if (ended(row)) break;
        }
        row.drafts->keep(num_given);
      } catch (const std::exception& error) {
        failures.push_back({&row, error.what()});
      }
    }
  }

  // Rows go back to the queue until the caches of the others fit. Their tokens
  // are read again later, as far as they aren't stored.
  void preempt(std::vector<BatchPart>& out) {
    while (Row* row = admission_.over_budget(running_)) {
      store_text(*row);
      if (row->drawn) {
        const auto drawn = *std::exchange(row->drawn, std::nullopt);
        give_out(*row, drawn, out);
        if (row->drafts) row->drafts->add(row->given.back(), false);
        if (ended(*row)) read_last(*row, drawn.token);
      }
      auto found = std::ranges::find_if(
          running_, [&](const auto& each) { return each.get() == row; });
      auto taken = std::move(*found);
      running_.erase(found);
      if (ended(*row)) {
        finish(*row);
        continue;
      }
      start_again(*row);
      admission_.queue_again(std::move(taken));
      ++stats_.preemptions;
    }
  }

  // A token that no pass reads any more.
  void read_last(Row& row, const mx::array& token) {
    if (row.options().prompt_cache == nullptr || row.drafts) return;
    model_->forward(mx::expand_dims(token, 0), *row.cache);
    apply_quantization(*row.cache, row.options());
  }

  void start_again(Row& row) const {
    row.to_read.tokens = row.request.prompt;
    row.to_read.tokens.insert(
        row.to_read.tokens.end(), row.given.begin(), row.given.end());
    row.to_read.length = static_cast<int>(row.to_read.tokens.size());
    row.num_read = 0;
    row.num_given_before = static_cast<int>(row.given.size());
    PromptCache fresh = model_->make_cache(row.options().max_kv_size);
    if (row.drafts) {
      std::ranges::copy(make_draft_cache(*model_, row.options()),
                        std::back_inserter(fresh));
    }
    row.set_layers(fresh);
    row.sampling = Sampling(row.options());
  }

  void admit() {
    int num_reading = static_cast<int>(std::ranges::count_if(
        running_, [](const auto& row) { return row->reading(); }));
    while (static_cast<int>(running_.size()) < options_.max_rows &&
           num_reading < options_.max_prompt_rows) {
      auto row = admission_.next(running_);
      if (row == nullptr) return;
      stats_.reused_tokens +=
          static_cast<std::uint64_t>(begin_with_prefix(*row, running_));
      if (row->drafts) row->drafts->begin(known_before(*row));
      if (!std::exchange(row->begun, true)) row->answer.begin();
      running_.push_back(std::move(row));
      ++num_reading;
    }
  }

  // The tokens that its caches hold when it begins to read.
  static std::vector<int> known_before(const Row& row) {
    auto tokens = row.options().earlier_tokens;
    const auto& text = row.to_read.tokens;
    tokens.insert(tokens.end(), text.begin(), text.begin() + row.num_read);
    return tokens;
  }

  int prompt_tokens_now() {
    const bool decoding = std::ranges::any_of(
        running_, [](const auto& row) { return !row->reading(); });
    return admission_.prompt_tokens(
        running_,
        decoding ? options_.interleaved_tokens : options_.prefill_step_tokens);
  }

  // A pass that fails ends its rows; those that wait go on.
  std::vector<RowFailure> run(std::vector<PassPart>& parts) {
    std::vector<RowFailure> failures;
    if (parts.empty()) return failures;
    try {
      failures = run_pass(*model_, parts);
    } catch (const std::exception& error) {
      for (const PassPart& part : parts) {
        failures.push_back({part.row, error.what()});
      }
      return failures;
    }
    for (const PassPart& part : parts) {
      const Row& row = *part.row;
      if (part.of_prompt) store_checkpoint(*part.row);
      const auto& progress = row.options().prompt_progress;
      if (progress && part.of_prompt && row.num_given_before == 0) {
        progress(row.num_read, row.to_read.length);
      }
    }
    if (++stats_.passes % 256 == 0) mx::clear_cache();
    admission_.settle();
    return failures;
  }

  static void tell_of_segments(const std::vector<PassPart>& parts,
                               std::vector<RowFailure>& failures) {
    for (const PassPart& part : parts) {
      Row& row = *part.row;
      auto segment = part.of_prompt ? row.segment_read() : std::nullopt;
      if (!segment || !row.request.on_segment) continue;
      try {
        const ReadCache read = read_cache(row);
        settle(read.cache);
        row.request.on_segment(*segment, read);
      } catch (const std::exception& error) {
        failures.push_back({&row, error.what()});
      }
    }
  }

  // What rows have drawn, and, where that was one operation for several, the
  // tokens of all.
  struct Drawn {
    Row* row;
    Sampled sampled;
    std::optional<mx::array> with;
    int at;
  };

  void give_out(const std::vector<Drawn>& drawn, std::vector<BatchPart>& out) {
    std::uintptr_t read = 0;
    std::vector<int> together;
    for (const auto& [row, sampled, with, at] : drawn) {
      if (!with) {
        give_out(*row, sampled, out);
      } else {
        if (std::exchange(read, with->id()) != with->id()) {
          together = kernels::integers_of(*with);
        }
        give_out(*row, StepResult{together[at], sampled.logprobs}, out);
      }
      if (row->drafts) row->drafts->add(row->given.back(), true);
    }
  }

  void give_out(Row& row, const Sampled& drawn, std::vector<BatchPart>& out) {
    const int token = kernels::integers_of(drawn.token)[0];
    give_out(row, StepResult{token, drawn.logprobs}, out);
  }

  void give_out(Row& row, StepResult step, std::vector<BatchPart>& out) {
    row.given.push_back(step.token);
    out.push_back({row.id, row.answer.add(std::move(step))});
    if (row.drafts && ended(row)) {
      out.back().part.speculation = row.drafts->statistics();
    }
    ++stats_.generation_tokens;
  }

  void count(const std::vector<PassPart>& parts, double seconds) {
    int prompt_tokens = 0;
    int all_tokens = 0;
    for (const PassPart& part : parts) {
      all_tokens += part.num_tokens;
      if (part.of_prompt) prompt_tokens += part.num_tokens;
    }
    if (all_tokens == 0) return;
    stats_.prompt_tokens += static_cast<std::uint64_t>(prompt_tokens);
    const double share = double(prompt_tokens) / all_tokens;
    stats_.prompt_seconds += seconds * share;
    stats_.generation_seconds += seconds * (1 - share);
    for (const PassPart& part : parts) {
      if (part.row->drafts && !part.of_prompt) {
        part.row->drafts->note_seconds(seconds * (1 - share));
      }
    }
  }

  ModelPtr model_;
  TokenizerPtr tokenizer_;
  BatchOptions options_;
  Admission admission_;
  Rows running_;
  RowId next_id_ = 0;
  BatchStats stats_;
  bool closed_ = false;
  StepsUnderWay under_way_;  // the last member: ends first
};

BatchGenerator::BatchGenerator(ModelPtr model,
                               TokenizerPtr tokenizer,
                               const BatchOptions& options)
    : impl_(std::make_unique<Impl>(
          std::move(model), std::move(tokenizer), options)) {}
BatchGenerator::BatchGenerator(BatchGenerator&&) noexcept = default;
BatchGenerator& BatchGenerator::operator=(BatchGenerator&&) noexcept = default;
BatchGenerator::~BatchGenerator() = default;

BatchGenerator::Impl& BatchGenerator::impl() const {
  if (!impl_) {
    throw Error(ErrorKind::argument, "the batch generator was moved from");
  }
  return *impl_;
}

RowId BatchGenerator::insert(BatchRequest request) {
  return impl().insert(std::move(request));
}

std::vector<BatchPart> BatchGenerator::next() { return impl().next(); }

std::vector<BatchPart> BatchGenerator::next_generated() {
  std::vector<BatchPart> parts;
  while (parts.empty() && !empty()) parts = next();
  return parts;
}

bool BatchGenerator::empty() const { return impl().empty(); }
std::size_t BatchGenerator::num_rows() const { return impl().num_rows(); }
void BatchGenerator::remove(RowId row) { impl().remove(row); }

ReadCache BatchGenerator::extract_cache(RowId row) const {
  return impl().extract_cache(row);
}

BatchStats BatchGenerator::stats() const { return impl().stats(); }
void BatchGenerator::close() { impl().close(); }

}  // namespace mlxlm
