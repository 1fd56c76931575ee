// One answer of a session: reads what is new of the prompt, streams, and leaves
// the session with what came of it.
#include <algorithm>
#include <utility>

#include <mlx/mlx.h>

#include "generate/drafter.h"
#include "generate/generation_stream.h"
#include "generate/interruption.h"
#include "generate/rate.h"
#include "generate/session_state.h"

namespace mlxlm {
namespace {

using Clock = std::chrono::steady_clock;

class AnswerStream : public GenerationStream::Impl {
 public:
  AnswerStream(std::shared_ptr<Session::State> state,
               Session::State::Plan plan,
               std::vector<Message> before)
      : state_(std::move(state)),
        plan_(std::move(plan)),
        before_(std::move(before)),
        generate_(state_->options.generate),
        prefixes_(state_->prefixes()) {
    generate_.prefix_store.reset();  // the session looks there itself
    state_->answering = true;
  }

  ~AnswerStream() override {
    try {
      finish();
    } catch (...) {
      // Nobody is left to tell.
      state_->forget_cache();
    }
  }

  std::optional<GenerationResponse> next() override {
    if (finished_) {
      return std::nullopt;
    }
    try {
      auto part = next_part();
      if (!part || !part->finish_reason.empty()) {
        finish();
      }
      return part;
    } catch (...) {
      finish();
      throw;
    }
  }

 private:
  std::optional<GenerationResponse> next_part() {
    if (!stream_ && !begin()) {
      GenerationResponse last;
      last.token = -1;
      last.finish_reason = interruption_of(generate_);
      last.prompt_tokens = plan_.statistics.read_tokens();
      return last;
    }
    reading_ = true;
    auto part = stream_->next();
    reading_ = false;
    if (part) {
      take(*part);
    }
    return part;
  }

  // False if it is cancelled before the stream can begin.
  bool begin() {
    start_ = Clock::now();
    begun_ = reading_ = true;
    num_read_ = state_->rewind_for(plan_);
    generate_.prompt_cache = &state_->cache.layers();
    generate_.max_tokens = plan_.max_tokens;
    const auto& tokens = plan_.prompt.tokens;
    const int length = static_cast<int>(tokens.size());
    try {
      WiredLimit limit(*state_->model);
      for (int boundary : plan_.boundaries) {
        if (boundary > num_read_ && boundary < length) {
          state_->read(tokens, num_read_, boundary, with_progress());
          state_->cache.mark(num_read_, state_->options.checkpoint_bytes);
          store(std::span(tokens).first(num_read_));
        }
      }
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::cancelled) {
        throw;
      }
      reading_ = false;
      return false;
    }
    reading_ = false;
    generate_.earlier_tokens = {tokens.begin(), tokens.begin() + num_read_};
    stream_.emplace(stream_generate(
        state_->model,
        state_->tokenizer,
        std::vector<int>(tokens.begin() + num_read_, tokens.end()),
        with_progress()));
    return true;
  }

  // Counts what the cache has read, for when it is cancelled, and tells of the
  // whole prompt.
  GenerateOptions with_progress() {
    GenerateOptions options = generate_;
    options.prompt_progress = [this, from = num_read_](int done, int) {
      num_read_ = from + done;
      const TurnStatistics& turn = plan_.statistics;
      if (generate_.prompt_progress) {
        generate_.prompt_progress(num_read_ - turn.reused_tokens,
                                  turn.read_tokens());
      }
    };
    return options;
  }

  // What the cache has read.
  void store(std::span<const int> tokens) {
    if (prefixes_) {
      prefixes_->put(tokens, state_->cache.layers());
    }
  }

  void take(GenerationResponse& part) {
    if (part.token >= 0) {
      if (drawn_.empty()) {
        prompt_tps_ =
            rate(plan_.statistics.read_tokens(), seconds_since(start_));
      }
      drawn_.push_back(part.token);
    }
    text_ += part.text;
    finish_reason_ = part.finish_reason;
    part.prompt_tokens = plan_.statistics.read_tokens();
    part.prompt_tps = prompt_tps_;
  }

  void finish() {
    if (std::exchange(finished_, true)) {
      return;
    }
    state_->answering = false;
    stream_.reset();  // the caches are as they stay
    // Who drafts may be ahead of a cancelled prompt.
    bool is_lost =
        reading_ || (begun_ && drawn_.empty() && drafts_with_cache(generate_));
    if (is_lost) {
      state_->forget_cache();
    } else if (begun_) {
      state_->tokens.set(std::move(plan_.prompt), num_read_);
    }
    if (drawn_.empty()) {
      state_->messages = std::move(before_);
      return;
    }
    if (!is_lost) {
      remember_tokens();
      store(state_->tokens.held());
    }
    state_->messages.push_back({"assistant", text_, ""});
    count();
  }

  void remember_tokens() {
    const auto& ends = state_->tokenizer->eos_token_ids();
    bool ended =
        !generate_.ignore_eos && std::ranges::count(ends, drawn_.back());
    // What a stop text or sequence cut off is held, but not of the message.
    bool cut = finish_reason_ == "stop" && !ended;
    std::string end_text =
        ended ? state_->tokenizer->id_to_token(drawn_.back()).value_or("") : "";
    int message = static_cast<int>(state_->messages.size());
    bool known = !cut && (!ended || !end_text.empty());
    state_->tokens.append(drawn_, known ? message : -1, text_, end_text);
  }

  void count() {
    TurnStatistics& turn = plan_.statistics;
    turn.generated_tokens = static_cast<int>(drawn_.size());
    bool is_cut = turn.generated_tokens == plan_.max_tokens &&
                  plan_.max_tokens != state_->options.generate.max_tokens &&
                  finish_reason_ == "length";
    int context = state_->context_tokens();
    bool is_rotated = state_->options.when_full == FullContext::rotate &&
                      context > 0 &&
                      turn.prompt_tokens + turn.generated_tokens > context;
    turn.context_full = turn.context_full || is_cut || is_rotated;
    state_->last_turn = turn;
    TurnStatistics& total = state_->total;
    total.prompt_tokens += turn.prompt_tokens;
    total.reused_tokens += turn.reused_tokens;
    total.reread_tokens += turn.reread_tokens;
    total.generated_tokens += turn.generated_tokens;
    total.dropped_messages += turn.dropped_messages;
    total.context_full = total.context_full || turn.context_full;
  }

  std::shared_ptr<Session::State> state_;
  Session::State::Plan plan_;
  std::vector<Message> before_;
  GenerateOptions generate_;
  std::optional<PrefixAccess> prefixes_;
  std::optional<GenerationStream> stream_;
  Clock::time_point start_;
  double prompt_tps_ = 0;  // tokens per second
  int num_read_ = 0;       // of the prompt
  std::vector<int> drawn_;
  std::string text_;
  std::string finish_reason_;
  bool begun_ = false;
  bool reading_ = false;  // still so at the end: it failed in the middle
  bool finished_ = false;
};

}  // namespace

GenerationStream answer_stream(std::shared_ptr<Session::State> state,
                               Session::State::Plan plan,
                               std::vector<Message> before) {
  return GenerationStream(std::make_unique<AnswerStream>(
      std::move(state), std::move(plan), std::move(before)));
}

}  // namespace mlxlm
