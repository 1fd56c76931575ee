// Batches for `benchmark`: all requests at once, or arriving over time.
#pragma once

#include <optional>
#include <vector>

#include <mlxlm/batch.h>

namespace mlxlm::cli {

struct BatchLoad {
  int rows = 1;      // answered at the same time
  int requests = 1;  // in all
  int generation_tokens = 1;
  int prefill_step_tokens = 2048;
  double requests_per_second = 0;  // 0: all at once; else at random intervals
  int interleaved_tokens = 512;    // of prompts in a pass while others decode
  // Of one request more, which joins once all have a token: how long it delays
  // them. 0: none.
  int long_prompt_tokens = 0;
};

struct BatchMeasurement {
  BatchStats stats;
  double total_seconds = 0;
  // Of requests, from their arrival; of tokens, from the one before; but for
  // the long prompt. Sorted.
  std::vector<double> first_token_seconds;
  std::vector<double> gap_seconds;
  // While all rows decode, from the last first token to the first end: the
  // share of the time in which no kernel of the CPU ran. None where they don't
  // run at all.
  std::optional<double> outside_kernels;
};

// Every request has the same prompt, the long one begins with it. Throws
// Interrupted.
BatchMeasurement measure_batch(const LoadedModel& loaded,
                               const std::vector<int>& prompt,
                               const BatchLoad& load);

// Of sorted values: the one that `share` of them don't exceed.
double quantile(const std::vector<double>& sorted, double share);

}  // namespace mlxlm::cli
