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

  bool has_processors() const { return !processors_.empty(); }

  // Tokens that the processors are to know of.
  void add_history(const std::vector<int>& tokens);
  void add_history(const mx::array& tokens);  // [N] int32

  // Draws one token from logits [1, V] after the history and `more` tokens [N].
  Sampled draw(const mx::array& logits,
               const std::optional<mx::array>& more = std::nullopt) const;

  // Draws one token for each of the logits [N, V], without processors:
  // tokens [N] and logprobs [N, V].
  Sampled draw_each(const mx::array& logits) const;

 private:
  std::vector<LogitsProcessor> processors_;
  Sampler sampler_;
  std::optional<mx::array> history_;  // [N] int32
};

}  // namespace mlxlm
