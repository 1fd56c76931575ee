#include "cli/benchmark_batch.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <random>
#include <thread>

#include <mlxlm/error.h>

#include "cli/interrupt.h"
#include "kernels/mlx_compat/host_op.h"

namespace mlxlm::cli {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// When each request arrives, in seconds: a Poisson process.
std::vector<double> arrivals(const BatchLoad& load) {
  std::vector<double> times(static_cast<std::size_t>(load.requests), 0.0);
  if (load.requests_per_second <= 0) return times;
  std::mt19937 random(0);
  std::exponential_distribution<double> interval(load.requests_per_second);
  double time = 0;
  for (double& each : times) each = time += interval(random);
  return times;
}

// `prompt` over and over.
std::vector<int> repeated(const std::vector<int>& prompt, int num_tokens) {
  std::vector<int> tokens;
  for (std::size_t i = 0; i < static_cast<std::size_t>(num_tokens); ++i) {
    tokens.push_back(prompt[i % prompt.size()]);
  }
  return tokens;
}

// Measures BatchMeasurement::outside_kernels.
class KernelShare {
 public:
  void begin() {
    start_ = Clock::now();
    kernels_before_ = kernels::host_op_seconds();
  }
  bool begun() const { return start_.has_value(); }
  std::optional<double> end() const {
    const double kernels = kernels::host_op_seconds() - kernels_before_;
    const double all = seconds_between(*start_, Clock::now());
    if (kernels <= 0 || all <= 0) return std::nullopt;
    return std::max(1 - kernels / all, 0.0);
  }

 private:
  std::optional<Clock::time_point> start_;
  double kernels_before_ = 0;
};

struct Times {
  Clock::time_point arrived;
  std::optional<Clock::time_point> last_token;
};

}  // namespace

BatchMeasurement measure_batch(const LoadedModel& loaded,
                               const std::vector<int>& prompt,
                               const BatchLoad& load) {
  BatchGenerator batch(
      loaded.model,
      loaded.tokenizer,
      {.max_rows = load.rows + (load.long_prompt_tokens > 0 ? 1 : 0),
       .max_prompt_rows = load.rows,
       .interleaved_tokens = load.interleaved_tokens,
       .prefill_step_tokens = load.prefill_step_tokens});
  GenerateOptions options{.max_tokens = load.generation_tokens,
                          .prefill_step_tokens = load.prefill_step_tokens,
                          .ignore_eos = true};
  CancelOnInterrupt cancel(options.cancel);
  BatchMeasurement result;
  std::map<RowId, Times> rows;
  const auto times = arrivals(load);
  const auto start = Clock::now();
  std::size_t arrived = 0;
  std::optional<RowId> long_row;
  KernelShare share;
  while (arrived < times.size() || !batch.empty()) {
    for (; arrived < times.size() &&
           times[arrived] <= seconds_between(start, Clock::now());
         ++arrived) {
      const RowId row = batch.insert({.prompt = prompt, .options = options});
      rows[row].arrived = Clock::now();
    }
    const bool all_decode = result.first_token_seconds.size() == times.size();
    if (all_decode && !share.begun()) share.begin();
    if (load.long_prompt_tokens > 0 && !long_row && all_decode) {
      options.max_tokens = 1;
      long_row =
          batch.insert({.prompt = repeated(prompt, load.long_prompt_tokens),
                        .options = options});
    }
    if (batch.empty()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    for (const auto& [row, part, error] : batch.next()) {
      if (part.finish_reason == "error") {
        throw Error(ErrorKind::argument, error);
      }
      if (row == long_row) continue;
      if (!part.finish_reason.empty() && share.begun() &&
          !result.outside_kernels) {
        result.outside_kernels = share.end();
      }
      Times& each = rows.at(row);
      const auto now = Clock::now();
      if (each.last_token) {
        result.gap_seconds.push_back(seconds_between(*each.last_token, now));
      } else {
        result.first_token_seconds.push_back(
            seconds_between(each.arrived, now));
      }
      each.last_token = now;
    }
    if (interrupted()) throw Interrupted();
  }
  result.total_seconds = seconds_between(start, Clock::now());
  result.stats = batch.stats();
  std::ranges::sort(result.first_token_seconds);
  std::ranges::sort(result.gap_seconds);
  return result;
}

double quantile(const std::vector<double>& sorted, double share) {
  if (sorted.empty()) return 0;
  const auto last = static_cast<double>(sorted.size() - 1);
  return sorted[static_cast<std::size_t>(share * last + 0.5)];
}

}  // namespace mlxlm::cli
