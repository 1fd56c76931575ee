#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <mlx/mlx.h>

#include <mlxlm/error.h>
#include <mlxlm/sample.h>

#include "sample/check.h"

namespace mlxlm {
namespace {

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

mx::array scalar(double value, const mx::array& like) {
  return mx::array(static_cast<float>(value), like.dtype());
}

// The latest tokens, one copy for each row of logits: [B, N].
mx::array context_of(const mx::array& tokens,
                     int context_size,
                     const mx::array& logits) {
  int size = static_cast<int>(tokens.size());
  int count = context_size == 0 ? size : std::min(size, context_size);
  mx::array latest = mx::slice(mx::flatten(tokens), {size - count}, {size});
  return mx::broadcast_to(mx::expand_dims(latest, 0), {logits.shape(0), count});
}

LogitsProcessor repetition_processor(double penalty, int context_size) {
  return [=](const mx::array& tokens, const mx::array& logits) {
    if (tokens.size() == 0) {
      return logits;
    }
    mx::array context = context_of(tokens, context_size, logits);
    mx::array seen = mx::take_along_axis(logits, context, 1);
    mx::array factor = scalar(penalty, logits);
    seen = mx::where(mx::less(seen, scalar(0, logits)),
                     mx::multiply(seen, factor),
                     mx::divide(seen, factor));
    return mx::put_along_axis(logits, context, seen, 1);
  };
}

LogitsProcessor presence_processor(double penalty, int context_size) {
  return [=](const mx::array& tokens, const mx::array& logits) {
    if (tokens.size() == 0) {
      return logits;
    }
    mx::array context = context_of(tokens, context_size, logits);
    mx::array seen = mx::take_along_axis(logits, context, 1);
    seen = mx::subtract(seen, scalar(penalty, logits));
    return mx::put_along_axis(logits, context, seen, 1);
  };
}

LogitsProcessor frequency_processor(double penalty, int context_size) {
  return [=](const mx::array& tokens, const mx::array& logits) {
    if (tokens.size() == 0) {
      return logits;
    }
    mx::array context = context_of(tokens, context_size, logits);
    mx::array change = mx::full(context.shape(), scalar(-penalty, logits));
    return mx::scatter_add_axis(logits, context, change, 1);
  };
}

LogitsProcessor bias_processor(std::vector<std::pair<int, double>> bias) {
  std::vector<int> ids;
  std::vector<float> values;
  for (const auto& [id, value] : bias) {
    ids.push_back(id);
    values.push_back(static_cast<float>(value));
  }
  int largest = *std::max_element(ids.begin(), ids.end());
  int count = static_cast<int>(ids.size());
  mx::array indices(ids.begin(), {1, count}, mx::int32);
  mx::array added(values.begin(), {1, count}, mx::float32);
  return [=](const mx::array&, const mx::array& logits) {
    if (largest >= logits.shape(-1)) {
      throw Error(ErrorKind::argument,
                  "logit_bias names token " + std::to_string(largest) +
                      ", but the vocabulary ends at " +
                      std::to_string(logits.shape(-1) - 1));
    }
    mx::Shape shape{logits.shape(0), count};
    return mx::scatter_add_axis(
        logits,
        mx::broadcast_to(indices, shape),
        mx::broadcast_to(mx::astype(added, logits.dtype()), shape),
        1);
  };
}

void check(const PenaltyOptions& options) {
  for (const auto& [id, value] : options.logit_bias) {
    check_range("logit_bias's token", id, 0, kNoLimit);
    // -inf is a way to forbid a token; NaN and +inf would spoil the rest.
    if (value != -kNoLimit) {
      check_range("logit_bias's value", value, -kNoLimit, kNoLimit);
    }
  }
  check_range("repetition_penalty", options.repetition_penalty, 0, kNoLimit);
  check_range(
      "presence_penalty", options.presence_penalty, -kNoLimit, kNoLimit);
  check_range(
      "frequency_penalty", options.frequency_penalty, -kNoLimit, kNoLimit);
  check_range(
      "repetition_context_size", options.repetition_context_size, 0, kNoLimit);
  check_range(
      "presence_context_size", options.presence_context_size, 0, kNoLimit);
  check_range(
      "frequency_context_size", options.frequency_context_size, 0, kNoLimit);
}

}  // namespace

std::vector<LogitsProcessor> make_logits_processors(
    const PenaltyOptions& options) {
  check(options);
  std::vector<LogitsProcessor> processors;
  if (!options.logit_bias.empty()) {
    processors.push_back(bias_processor(options.logit_bias));
  }
  if (options.repetition_penalty != 0) {
    processors.push_back(repetition_processor(options.repetition_penalty,
                                              options.repetition_context_size));
  }
  if (options.presence_penalty != 0) {
    processors.push_back(presence_processor(options.presence_penalty,
                                            options.presence_context_size));
  }
  if (options.frequency_penalty != 0) {
    processors.push_back(frequency_processor(options.frequency_penalty,
                                             options.frequency_context_size));
  }
  return processors;
}

}  // namespace mlxlm
