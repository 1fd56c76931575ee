// batch_generate, and the figures of a batch.
#include <algorithm>
#include <map>

#include <mlx/mlx.h>

#include <mlxlm/batch.h>

#include "generate/rate.h"

namespace mlxlm {
namespace {

float logprob_of(const GenerationResponse& part) {
  return mx::take(*part.logprobs, part.token).item<float>();
}

void check_options_for_all(const std::vector<BatchRequest>& requests) {
  for (const auto& request : requests) {
    if (request.options.prompt_cache != nullptr &&
        std::ranges::count_if(requests, [&](const auto& other) {
          return other.options.prompt_cache == request.options.prompt_cache;
        }) > 1) {
      throw Error(ErrorKind::argument,
                  "two rows of a batch have the same prompt cache; give each a "
                  "copy (fork_prompt_cache)");
    }
  }
}

}  // namespace

double BatchStats::prompt_tps() const {
  return rate(static_cast<double>(prompt_tokens), prompt_seconds);
}

double BatchStats::generation_tps() const {
  return rate(static_cast<double>(generation_tokens), generation_seconds);
}

BatchStats BatchStats::operator-(const BatchStats& before) const {
  BatchStats window = *this;
  window.passes -= before.passes;
  window.prompt_tokens -= before.prompt_tokens;
  window.generation_tokens -= before.generation_tokens;
  window.reused_tokens -= before.reused_tokens;
  window.preemptions -= before.preemptions;
  window.prompt_seconds -= before.prompt_seconds;
  window.generation_seconds -= before.generation_seconds;
  return window;
}

BatchResponse batch_generate(ModelPtr model,
                             TokenizerPtr tokenizer,
                             std::vector<BatchRequest> requests,
                             const BatchReturns& returns,
                             const BatchOptions& options) {
  check_options_for_all(requests);
  const std::size_t count = requests.size();
  BatchResponse response;
  response.texts.resize(count);
  response.finish_reasons.resize(count);
  if (returns.prompt_caches) response.caches.resize(count);
  if (returns.token_ids) response.token_ids.resize(count);
  if (returns.logprobs) response.logprobs.resize(count);

  BatchGenerator batch(std::move(model), std::move(tokenizer), options);
  std::map<RowId, std::size_t> places;
  std::vector<PromptCache*> given;
  for (std::size_t i = 0; i < count; ++i) {
    auto& request = requests[i];
    if (returns.prompt_caches && request.options.prompt_cache == nullptr) {
      request.options.prompt_cache = &response.caches[i];
    }
    given.push_back(request.options.prompt_cache);
    places[batch.insert(std::move(request))] = i;
  }
  while (!batch.empty()) {
    for (const auto& [row, part, error] : batch.next()) {
      const std::size_t i = places.at(row);
      if (part.finish_reason == "error") {
        throw Error(ErrorKind::argument,
                    "row " + std::to_string(i) + " of the batch: " + error);
      }
      response.texts[i] += part.text;
      response.finish_reasons[i] = part.finish_reason;
      if (part.token < 0 || part.finish_reason == "stop") continue;
      if (returns.logprobs) response.logprobs[i].push_back(logprob_of(part));
      if (returns.token_ids) response.token_ids[i].push_back(part.token);
    }
  }
  for (std::size_t i = 0; i < response.caches.size(); ++i) {
    if (given[i] != &response.caches[i]) {
      response.caches[i] = fork_prompt_cache(*given[i]);
    }
  }
  response.stats = batch.stats();
  return response;
}

}  // namespace mlxlm
