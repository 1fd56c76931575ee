// From logits to a token: processors with the history, then the sampler.
#pragma once

#include <optional>
#include <vector>

#include <mlxlm/generate.h>

namespace mlxlm {

// One drawn token and what it was drawn from.
struct Sampled {
  mx::array token;     // [1] int32
  mx::array logprobs;  // [V] float32
};

// The logits of the last `count` of L positions: [1, L, V] -> [count, V],
// float32.
mx::array last_logits(const mx::array& logits, int count);

class Sampling {
 public:
  explicit Sampling(const GenerateOptions& options);

  // Tokens that the processors are to know of.
  void add_history(const std::vector<int>& tokens);
  void add_history(const mx::array& tokens);  // [N] int32

  // Processed log-probabilities [1, V] of logits [1, V] after the history and
  // `more` tokens [N].
  mx::array logprobs(const mx::array& logits,
                     const std::optional<mx::array>& more = std::nullopt) const;

  // To draw drafts with: a sampler with a seed draws for each place what it
  // will draw there for the model, so that drafts change none of its tokens and
  // are as often right as can be.
  Sampling for_drafts() const;

  // Draws one token from logits [1, V] after the history.
  Sampled draw(const mx::array& logits) const;

  // [B, V] -> int32 [B]
  mx::array draw_from(const mx::array& logprobs) const;

  // Whether tokens depend on nothing but the logits of their place, so that
  // several can be drawn at once: no processors, no random numbers.
  bool is_greedy() const { return greedy_ && processors_.empty(); }

  // Whether log_weights() is known: the sampler is make_sampler()'s, at a
  // temperature above 0.
  bool has_weights() const;
  // Log-weights [1, V] that a token is drawn with, not normalized.
  mx::array log_weights(const mx::array& logprobs) const;

 private:
  std::vector<LogitsProcessor> processors_;
  Sampler sampler_;
  bool greedy_;
  std::optional<mx::array> history_;  // [N] int32
};

}  // namespace mlxlm
