// Batches for `benchmark`: all requests at once, or arriving over time.
#pragma once

#include <vector>

#include <mlxlm/batch.h>

namespace mlxlm::cli {

struct BatchLoad {
  int rows = 1;      // answered at the same time
  int requests = 1;  // in all
  int generation_tokens = 1;
  int prefill_step_tokens = 2048;
  double requests_per_second = 0;  // 0: all at once; else at random intervals
};

struct BatchMeasurement {
  BatchStats stats;
  double total_seconds = 0;
  // Of requests, from their arrival; of tokens, from the one before. Sorted.
  std::vector<double> first_token_seconds;
  std::vector<double> gap_seconds;
};

// Every request has the same prompt. Throws Interrupted.
BatchMeasurement measure_batch(const LoadedModel& loaded,
                               const std::vector<int>& prompt,
                               const BatchLoad& load);

// Of sorted values: the one that `share` of them don't exceed.
double quantile(const std::vector<double>& sorted, double share);

}  // namespace mlxlm::cli
