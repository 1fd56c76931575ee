// mlx-lm generate: main() of mlx_lm/generate.py.
#include <chrono>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <mlx/mlx.h>

#include <mlxlm/error.h>
#include <mlxlm/generate.h>

#include "cli/arguments.h"
#include "cli/cache_options.h"
#include "cli/command.h"
#include "cli/console.h"
#include "cli/construction_draws.h"
#include "cli/generation_output.h"
#include "cli/interrupt.h"
#include "cli/model_options.h"
#include "cli/prompt_options.h"
#include "cli/sampling_options.h"
#include "cli/several_ranks.h"
#include "cli/speculation_options.h"

namespace mlxlm::cli {
namespace {

constexpr char kExamples[] = R"(Examples:
  mlx-lm generate --prompt "Why is the sky blue?" --max-tokens 300
  mlx-lm generate --prompt - --temp 0.7 --seed 1 < question.txt
  mlx-lm generate --tokens 1,2,3 --temp 0 --json --top-logprobs 5

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C, 141 output closed.)";

// Throws if no token has a probability: a sampler's pick means nothing then.
void check_probabilities(const GenerationResponse& part) {
  if (!part.logprobs || part.token < 0) {
    return;
  }
  mx::array logprob = mx::slice(*part.logprobs, {part.token}, {part.token + 1});
  if (std::isnan(mx::astype(logprob, mx::float32).item<float>())) {
    throw Error(ErrorKind::argument,
                "no token is possible: the model's logits aren't numbers, or "
                "--logit-bias excludes all of them");
  }
}

class Generate {
 public:
  void add_to(CLI::App& command);
  void run();

 private:
  void check() const;
  LoadedModel load();
  GenerateOptions options_for(const LoadedModel& loaded) const;
  OutputOptions output_options() const;

  ModelOptions model_;
  PromptOptions prompt_;
  SamplingOptions sampling_;
  CacheOptions cache_;
  std::vector<std::string> images_;
  int max_tokens_ = 100;
  std::vector<std::string> stops_;
  bool ignore_eos_ = false;
  std::optional<double> deadline_seconds_;
  SpeculationOptions speculation_;
  std::string verbose_ = "True";
  bool json_ = false;
  bool no_stream_ = false;
  std::optional<int> top_logprobs_;
};

void Generate::add_to(CLI::App& command) {
  model_.add_to(command);
  prompt_.add_to(command);
  add_list(command,
           "--image",
           images_,
           "Not implemented yet: no model here takes images")
      ->type_name("FILE")
      ->group("Prompt");

  constexpr char kLength[] = "Length";
  command
      .add_option(
          "-m,--max-tokens", max_tokens_, "Tokens at most; -1: no limit")
      ->capture_default_str()
      ->type_name("N")
      ->group(kLength);
  add_list(command, "--stop", stops_, "End before this text; repeatable")
      ->group(kLength);
  command
      .add_flag("--ignore-eos", ignore_eos_, "Go on after end-of-text tokens")
      ->group(kLength);
  command
      .add_option(
          "--deadline", deadline_seconds_, "Stop after this many seconds")
      ->type_name("SECONDS")
      ->group(kLength);

  sampling_.add_to(command);
  cache_.add_to(command);
  cache_.add_saved_to(command);

  speculation_.add_to(command);

  constexpr char kOutput[] = "Output";
  command
      .add_option("--verbose",
                  verbose_,
                  "False or F prints the text without a frame\n"
                  "and statistics")
      ->capture_default_str()
      ->type_name("BOOL")
      ->group(kOutput);
  command.add_flag("--no-stream", no_stream_, "Print the text at its end")
      ->group(kOutput);
  command
      .add_flag("--json",
                json_,
                "Print one object: text, tokens, finish_reason,\n"
                "stats, and logprobs if asked for")
      ->group(kOutput);
  command
      .add_option("--top-logprobs",
                  top_logprobs_,
                  "With --json: log-probabilities of each token\n"
                  "and of the N best at its place")
      ->type_name("N")
      ->group(kOutput);
  command.footer(kExamples);
}

void Generate::check() const {
  if (!images_.empty()) {
    throw Error(ErrorKind::unsupported,
                "--image isn't implemented yet: no model here takes images");
  }
  check_max_tokens(max_tokens_);
  if (deadline_seconds_) {
    require_one_rank("--deadline", "each would stop at another token");
  }
  if (top_logprobs_ && !json_) {
    throw UsageError("--top-logprobs needs --json");
  }
  check_at_least("--top-logprobs", top_logprobs_.value_or(0), 0);
  // A year is as good as no deadline, and fits the clock.
  if (deadline_seconds_ &&
      !(*deadline_seconds_ > 0 && *deadline_seconds_ < 3.2e7)) {
    throw Error(ErrorKind::argument,
                "--deadline must be a positive number of seconds");
  }
  for (const std::string& stop : stops_) {
    if (stop.empty()) {
      throw Error(ErrorKind::argument, "--stop is empty");
    }
  }
  prompt_.check();
  speculation_.check();
  // Faults of the options come before the time it takes to load a model.
  sampling_.sampler(nullptr);
  sampling_.processors();
  GenerateOptions ignored;
  cache_.apply_to(ignored);
}

LoadedModel Generate::load() {
  model_.draft_head = speculation_.needs_draft_head();
  LoadedModel loaded =
      prompt_.is_tokens() ? model_.load_tokenizer_optional() : model_.load();
  if (sampling_.has_seed()) {
    skip_construction_draws(*loaded.model);
  }
  return loaded;
}

GenerateOptions Generate::options_for(const LoadedModel& loaded) const {
  GenerateOptions options;
  options.max_tokens = max_tokens_;
  options.sampler = sampling_.sampler(loaded.tokenizer.get());
  options.logits_processors = sampling_.processors();
  cache_.apply_to(options);
  for (const std::string& stop : stops_) {
    options.stop_texts.push_back(unescaped(stop));
  }
  options.ignore_eos = ignore_eos_;
  options.prompt_progress = [](int done, int total) {
    show_progress({.what = "reading the prompt",
                   .done = static_cast<std::uint64_t>(done),
                   .total = static_cast<std::uint64_t>(total)});
  };
  if (deadline_seconds_) {
    options.deadline =
        std::chrono::steady_clock::now() +
        std::chrono::duration_cast<std::chrono::steady_clock::duration>(
            std::chrono::duration<double>(*deadline_seconds_));
  }
  speculation_.apply_to(options, loaded);
  if (options.draft_model && sampling_.has_seed()) {
    skip_construction_draws(*options.draft_model);
  }
  return options;
}

OutputOptions Generate::output_options() const {
  std::string verbose = CLI::detail::to_lower(verbose_);
  return {.verbose = verbose != "false" && verbose != "f",
          .stream = !no_stream_,
          .json = json_,
          .top_logprobs = top_logprobs_.value_or(-1)};
}

void Generate::run() {
  sampling_.apply_seed();
  check();
  std::optional<SavedCache> saved = cache_.load_saved(model_.model);
  if (saved) {
    model_.model = saved->model;
  }
  LoadedModel loaded = load();
  if (saved && !saved->eos_token.empty() && loaded.tokenizer != nullptr) {
    loaded.tokenizer->add_eos_token(saved->eos_token);
  }
  PromptUse use = PromptUse::whole;
  if (saved) {
    saved->check(loaded);
    use = saved->prompt_is_whole ? use : PromptUse::continues_cache;
  }
  std::vector<int> prompt = prompt_.encode(loaded.tokenizer.get(), use);
  GenerateOptions options = options_for(loaded);
  if (saved) {
    prompt = saved->rest_of(prompt);
    options.prompt_cache = &saved->cache;
  }

  CancelOnInterrupt cancel(options.cancel);
  auto output = make_generation_output(output_options(), loaded.tokenizer);
  GenerationStream stream =
      stream_generate(loaded.model, loaded.tokenizer, prompt, options);
  // The first part is computed before anything is printed, so that a failure
  // leaves standard output empty.
  std::optional<GenerationResponse> part = stream.next();
  if (part) {
    check_probabilities(*part);
  }
  output->begin();
  for (; part && !interrupted(); part = stream.next()) {
    output->add(*part);
  }
  if (interrupted()) {
    throw Interrupted();
  }
  output->end();
}

}  // namespace

Command add_generate(CLI::App& command) {
  return command_of<Generate>(command);
}

}  // namespace mlxlm::cli
