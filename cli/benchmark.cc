// mlx-lm benchmark: mlx_lm/benchmark.py, with medians and spread.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/error.h>
#include <mlxlm/generate.h>

#include "cli/arguments.h"
#include "cli/benchmark_batch.h"
#include "cli/command.h"
#include "cli/console.h"
#include "cli/generation_output.h"
#include "cli/interrupt.h"
#include "cli/model_options.h"
#include "cli/several_ranks.h"
#include "generate/rate.h"

namespace mlxlm::cli {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr char kExamples[] = R"(Examples:
  mlx-lm benchmark -p 512 -g 128 -n 5
  mlx-lm benchmark --model gemma-3-270m --json
  mlx-lm benchmark -b 8 -p 128 -g 64
  mlx-lm benchmark -b 8 --requests 50 --arrival-rate 2 -p 128 -g 64

One run warms up; the others are timed. The prompt is random and
end-of-sequence tokens don't end a run.)";

struct Trial {
  double prompt_tps = 0;
  double generation_tps = 0;
  double first_token_seconds = 0;  // the median of a batch's
  double total_seconds = 0;
  double peak_memory_gb = 0;
  // Of batches:
  double first_token_p99_seconds = 0;
  double gap_p50_seconds = 0;  // between a request's tokens
  double gap_p99_seconds = 0;
  double outside_kernels = 0;  // a share; 0: not known
};

struct Spread {
  double median = 0;
  double min = 0;
  double max = 0;
};

Spread spread_of(const std::vector<Trial>& trials, double Trial::*field) {
  std::vector<double> values;
  for (const Trial& trial : trials) {
    values.push_back(trial.*field);
  }
  std::sort(values.begin(), values.end());
  std::size_t middle = values.size() / 2;
  double median = values.size() % 2 == 1
                      ? values[middle]
                      : (values[middle - 1] + values[middle]) / 2;
  return {median, values.front(), values.back()};
}

constexpr std::pair<const char*, double Trial::*> kBatchFields[] = {
    {"first_token_p99", &Trial::first_token_p99_seconds},
    {"token_gap_p50", &Trial::gap_p50_seconds},
    {"token_gap_p99", &Trial::gap_p99_seconds}};

json to_json(const Spread& spread) {
  return {{"median", spread.median}, {"min", spread.min}, {"max", spread.max}};
}

std::string line_of(const char* name, const Spread& spread, const char* unit) {
  char text[160];
  std::snprintf(text,
                sizeof(text),
                "%-20s %10.3f %s  (%.3f to %.3f)\n",
                name,
                spread.median,
                unit,
                spread.min,
                spread.max);
  return text;
}

class Benchmark {
 public:
  void add_to(CLI::App& command);
  void run();

 private:
  void check() const;
  std::vector<int> random_prompt(const Model& model) const;
  bool batched() const {
    return batch_size_ > 1 || requests_ > 0 || long_prompt_tokens_ > 0;
  }
  Trial run_once(const LoadedModel& loaded,
                 const std::vector<int>& prompt) const;
  Trial run_batch(const LoadedModel& loaded,
                  const std::vector<int>& prompt) const;
  void print_result(const std::vector<Trial>& trials,
                    double load_seconds) const;

  ModelOptions model_;
  int prompt_tokens_ = 512;
  int generation_tokens_ = 1024;
  int batch_size_ = 1;
  int requests_ = 0;  // 0: as many as batch_size_
  double arrival_rate_ = 0;
  int long_prompt_tokens_ = 0;
  int interleaved_tokens_ = 512;
  int num_trials_ = 5;
  int prefill_step_tokens_ = 2048;
  int delay_seconds_ = 0;
  bool pipeline_ = false;
  bool json_ = false;
};

void Benchmark::add_to(CLI::App& command) {
  model_.add_to(command);
  constexpr char kGroup[] = "Measurement";
  auto add = [&](const char* name, int& value, const char* help) {
    command.add_option(name, value, help)
        ->capture_default_str()
        ->type_name("N")
        ->group(kGroup);
  };
  add("-p,--prompt-tokens", prompt_tokens_, "Length of the prompt");
  add("-g,--generation-tokens", generation_tokens_, "Tokens to generate");
  add("-b,--batch-size", batch_size_, "Requests answered at the same time");
  add("--requests", requests_, "Requests in all; 0: one batch");
  command
      .add_option("--arrival-rate",
                  arrival_rate_,
                  "Requests per second, at random intervals;\n0: all at once")
      ->capture_default_str()
      ->type_name("N")
      ->group(kGroup);
  add("--long-prompt",
      long_prompt_tokens_,
      "Tokens of a prompt that joins a batch when all\nhave begun; 0: none");
  add("--interleaved-tokens",
      interleaved_tokens_,
      "Prompt tokens read at a time while others are\nanswered");
  add("-n,--num-trials", num_trials_, "Timed runs");
  add("--prefill-step-size",
      prefill_step_tokens_,
      "Prompt tokens read at a time");
  add("--delay", delay_seconds_, "Seconds to wait before each run");
  command
      .add_flag("--pipeline", pipeline_, "Not implemented: one machine only")
      ->group(kGroup);
  command.add_flag("--json", json_, "Print one object")->group("Output");
  command.footer(kExamples);
}

void Benchmark::check() const {
  check_at_least("--prompt-tokens", prompt_tokens_, 1);
  check_at_least("--generation-tokens", generation_tokens_, 1);
  check_at_least("--batch-size", batch_size_, 1);
  check_at_least("--num-trials", num_trials_, 1);
  check_at_least("--prefill-step-size", prefill_step_tokens_, 1);
  check_at_least("--delay", delay_seconds_, 0);
  check_at_least("--requests", requests_, 0);
  check_at_least("--long-prompt", long_prompt_tokens_, 0);
  check_at_least("--interleaved-tokens", interleaved_tokens_, 1);
  if (!(arrival_rate_ >= 0 && arrival_rate_ < 1e9)) {
    throw Error(ErrorKind::argument,
                "--arrival-rate must be a number of requests per second, or 0");
  }
  if (batched()) {
    require_one_rank("a batch", "each would join requests at other times");
  }
  if (pipeline_) {
    throw Error(ErrorKind::unsupported,
                "--pipeline isn't implemented: models run on one machine");
  }
}

std::vector<int> Benchmark::random_prompt(const Model& model) const {
  mx::array ids = mx::random::randint(
      0, model.vocabulary_size(), {1, prompt_tokens_}, mx::int32);
  ids = mx::contiguous(ids);
  ids.eval();
  return {ids.data<int>(), ids.data<int>() + prompt_tokens_};
}

Trial Benchmark::run_batch(const LoadedModel& loaded,
                           const std::vector<int>& prompt) const {
  const BatchMeasurement measured =
      measure_batch(loaded,
                    prompt,
                    {.rows = batch_size_,
                     .requests = requests_ > 0 ? requests_ : batch_size_,
                     .generation_tokens = generation_tokens_,
                     .prefill_step_tokens = prefill_step_tokens_,
                     .requests_per_second = arrival_rate_,
                     .interleaved_tokens = interleaved_tokens_,
                     .long_prompt_tokens = long_prompt_tokens_});
  const auto& first = measured.first_token_seconds;
  return {.prompt_tps = measured.stats.prompt_tps(),
          .generation_tps = measured.stats.generation_tps(),
          .first_token_seconds = quantile(first, 0.5),
          .total_seconds = measured.total_seconds,
          .peak_memory_gb = measured.stats.peak_memory_gb,
          .first_token_p99_seconds = quantile(first, 0.99),
          .gap_p50_seconds = quantile(measured.gap_seconds, 0.5),
          .gap_p99_seconds = quantile(measured.gap_seconds, 0.99),
          .outside_kernels = measured.outside_kernels.value_or(0)};
}

Trial Benchmark::run_once(const LoadedModel& loaded,
                          const std::vector<int>& prompt) const {
  if (batched()) return run_batch(loaded, prompt);
  GenerateOptions options;
  options.max_tokens = generation_tokens_;
  options.ignore_eos = true;
  options.prefill_step_tokens = prefill_step_tokens_;
  CancelOnInterrupt cancel(options.cancel);
  Clock::time_point start = Clock::now();
  GenerationStream stream =
      stream_generate(loaded.model, loaded.tokenizer, prompt, options);
  Trial trial;
  std::optional<GenerationResponse> last;
  while (auto part = stream.next()) {
    if (!last) {
      trial.first_token_seconds = seconds_since(start);
    }
    last = std::move(part);
  }
  if (interrupted()) {
    throw Interrupted();
  }
  trial.total_seconds = seconds_since(start);
  if (last) {
    trial.prompt_tps = last->prompt_tps;
    trial.generation_tps = last->generation_tps;
    trial.peak_memory_gb = last->peak_memory_gb;
  }
  return trial;
}

void Benchmark::print_result(const std::vector<Trial>& trials,
                             double load_seconds) const {
  Spread prompt = spread_of(trials, &Trial::prompt_tps);
  Spread generation = spread_of(trials, &Trial::generation_tps);
  Spread first = spread_of(trials, &Trial::first_token_seconds);
  Spread memory = spread_of(trials, &Trial::peak_memory_gb);
  if (!json_) {
    print("Medians (and range):\n");
    print(line_of("prompt_tps", prompt, "tokens/s"));
    print(line_of("generation_tps", generation, "tokens/s"));
    print(line_of("time_to_first_token", first, "s       "));
    if (batched()) {
      for (const auto& [name, field] : kBatchFields) {
        print(line_of(name, spread_of(trials, field), "s       "));
      }
      const Spread outside = spread_of(trials, &Trial::outside_kernels);
      if (outside.max > 0) {
        print(line_of("outside_kernels", outside, "of time "));
      }
    }
    char text[96];
    std::snprintf(text,
                  sizeof(text),
                  "%-20s %10.3f s\n%-20s %10.3f GB\n",
                  "load_time",
                  load_seconds,
                  "peak_memory",
                  memory.max);
    print(text);
    return;
  }
  json list = json::array();
  for (const Trial& trial : trials) {
    list.push_back({{"prompt_tps", trial.prompt_tps},
                    {"generation_tps", trial.generation_tps},
                    {"time_to_first_token", trial.first_token_seconds},
                    {"total_time", trial.total_seconds},
                    {"peak_memory", trial.peak_memory_gb}});
    if (!batched()) continue;
    for (const auto& [name, field] : kBatchFields) {
      list.back()[name] = trial.*field;
    }
    if (trial.outside_kernels > 0) {
      list.back()["outside_kernels"] = trial.outside_kernels;
    }
  }
  print(json_line({{"model", model_.name()},
                   {"prompt_tokens", prompt_tokens_},
                   {"generation_tokens", generation_tokens_},
                   {"batch_size", batch_size_},
                   {"num_trials", num_trials_},
                   {"prompt_tps", prompt.median},
                   {"generation_tps", generation.median},
                   {"time_to_first_token", first.median},
                   {"load_time", load_seconds},
                   {"peak_memory", memory.max},
                   {"spread",
                    {{"prompt_tps", to_json(prompt)},
                     {"generation_tps", to_json(generation)},
                     {"time_to_first_token", to_json(first)}}},
                   {"trials", list}}));
}

void Benchmark::run() {
  check();
  seed(0);
  auto say = [this](const std::string& text) {
    if (!json_) {
      print(text);
    }
  };
  Clock::time_point start = Clock::now();
  LoadedModel loaded = model_.load_tokenizer_optional();
  double load_seconds = seconds_since(start);
  std::vector<int> prompt = random_prompt(*loaded.model);

  say("Running warmup..\n");
  run_once(loaded, prompt);
  say("Timing with prompt_tokens=" + std::to_string(prompt_tokens_) +
      ", generation_tokens=" + std::to_string(generation_tokens_) +
      ", batch_size=" + std::to_string(batch_size_) + ".\n");
  std::vector<Trial> trials;
  for (int i = 0; i < num_trials_; ++i) {
    std::this_thread::sleep_for(std::chrono::seconds(delay_seconds_));
    const Trial& trial = trials.emplace_back(run_once(loaded, prompt));
    char text[192];
    std::snprintf(text,
                  sizeof(text),
                  "Trial %d:  prompt_tps=%.3f, generation_tps=%.3f, "
                  "peak_memory=%.3f, total_time=%.3f\n",
                  i + 1,
                  trial.prompt_tps,
                  trial.generation_tps,
                  trial.peak_memory_gb,
                  trial.total_seconds);
    say(text);
  }
  print_result(trials, load_seconds);
}

}  // namespace

Command add_benchmark(CLI::App& command) {
  return command_of<Benchmark>(command);
}

}  // namespace mlxlm::cli
