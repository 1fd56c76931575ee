#include "generate/sampling.h"

#include <mlx/mlx.h>

#include "kernels/seam.h"

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
    : processors_(options.logits_processors), sampler_(options.sampler) {
  if (!sampler_) {
    sampler_ = [](const mx::array& logprobs) {
      return kernels::table().argmax(logprobs);
    };
  }
  add_history(options.earlier_tokens);
}

void Sampling::add_history(const std::vector<int>& tokens) {
  if (!tokens.empty()) {
    add_history(
        mx::array(tokens.data(), {static_cast<int>(tokens.size())}, mx::int32));
  }
}

void Sampling::add_history(const mx::array& tokens) {
  if (has_processors()) {
    history_ = joined(history_, tokens);
  }
}

Sampled Sampling::draw(const mx::array& logits,
                       const std::optional<mx::array>& more) const {
  auto processed = logits;
  auto tokens = more ? joined(history_, *more) : history_;
  if (has_processors() && tokens) {
    for (const auto& process : processors_) {
      processed = process(*tokens, processed);
    }
  }
  Sampled sampled = draw_each(processed);
  sampled.logprobs = mx::squeeze(sampled.logprobs, 0);
  return sampled;
}

Sampled Sampling::draw_each(const mx::array& logits) const {
  auto logprobs = kernels::table().log_softmax(logits);
  return {mx::astype(sampler_(logprobs), mx::int32), logprobs};
}

}  // namespace mlxlm
