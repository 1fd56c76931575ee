#include "generate/sampling.h"

#include <mlx/mlx.h>

#include "generate/prefill.h"
#include "kernels/seam.h"
#include "sample/known_samplers.h"

namespace mlxlm {
namespace {

std::optional<mx::array> joined(const std::optional<mx::array>& a,
                                const mx::array& b) {
  return a ? mx::concatenate({*a, b}) : b;
}

}  // namespace

mx::array last_logits(const mx::array& logits, int count) {
  int length = logits.shape(1);
  int vocabulary = logits.shape(2);
  auto last =
      mx::slice(logits, {0, length - count, 0}, {1, length, vocabulary});
  return mx::astype(mx::reshape(last, {count, vocabulary}), mx::float32);
}

Sampling::Sampling(const GenerateOptions& options)
    : processors_(options.logits_processors),
      sampler_(options.sampler ? options.sampler : GreedySampler{}),
      greedy_(sampler_.target<GreedySampler>() != nullptr) {
  add_history(options.earlier_tokens);
}

void Sampling::add_history(const std::vector<int>& tokens) {
  if (!tokens.empty()) {
    add_history(token_array(tokens));
  }
}

void Sampling::add_history(const mx::array& tokens) {
  if (!processors_.empty()) {
    history_ = joined(history_, tokens);
  }
}

mx::array Sampling::logprobs(const mx::array& logits,
                             const std::optional<mx::array>& more) const {
  auto processed = logits;
  if (!processors_.empty()) {
    auto tokens = more ? joined(history_, *more) : history_;
    if (tokens) {
      for (const auto& process : processors_) {
        processed = process(*tokens, processed);
      }
    }
  }
  return kernels::table().log_softmax(processed);
}

Sampling Sampling::for_drafts() const {
  Sampling ahead = *this;
  if (const auto* seeded = sampler_.target<SeededSampler>()) {
    ahead.sampler_ = seeded->ahead();
  }
  return ahead;
}

Sampled Sampling::draw(const mx::array& logits) const {
  auto logprobs = this->logprobs(logits);
  return {draw_from(logprobs), mx::squeeze(logprobs, 0)};
}

mx::array Sampling::draw_from(const mx::array& logprobs) const {
  return mx::astype(sampler_(logprobs), mx::int32);
}

bool Sampling::has_weights() const {
  return sampler_.target<FilteredSampler>() != nullptr;
}

mx::array Sampling::log_weights(const mx::array& logprobs) const {
  return sampler_.target<FilteredSampler>()->log_weights(logprobs);
}

}  // namespace mlxlm
