// mlx-lm cache-prompt: main() of mlx_lm/cache_prompt.py.
#include <cstdio>
#include <string>
#include <vector>

#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/error.h>
#include <mlxlm/generate.h>

#include "cli/cache_options.h"
#include "cli/command.h"
#include "cli/console.h"
#include "cli/interrupt.h"
#include "cli/model_options.h"
#include "cli/prompt_options.h"

namespace mlxlm::cli {
namespace {

constexpr char kExamples[] = R"(Examples:
  mlx-lm cache-prompt --prompt - --prompt-cache-file notes.safetensors < notes
  mlx-lm generate --prompt-cache-file notes.safetensors --prompt "Summarize."
  mlx-lm cache-prompt --tokens 1,2,3 --prompt-cache-file ids.safetensors)";

class CachePrompt {
 public:
  void add_to(CLI::App& command);
  void run();

 private:
  void check() const;
  CacheMetadata metadata() const;

  ModelOptions model_;
  PromptOptions prompt_;
  CacheOptions cache_;
  std::string eos_token_;
  std::string file_;
};

void CachePrompt::add_to(CLI::App& command) {
  model_.add_to(command);
  command
      .add_option("--eos-token",
                  eos_token_,
                  "Token that ends the text of what continues the\ncache")
      ->type_name("TOKEN")
      ->group("Model");
  prompt_.add_to(command, /*for_cache=*/true);
  command.add_option("--prompt-cache-file", file_, "File to save the cache in")
      ->type_name("FILE")
      ->required()
      ->group("Cache");
  cache_.add_to(command);
  command.footer(kExamples);
}

void CachePrompt::check() const {
  if (!prompt_.given()) {
    throw UsageError("cache-prompt needs --prompt or --tokens");
  }
  prompt_.check();
  GenerateOptions ignored;
  cache_.apply_to(ignored);
}

CacheMetadata CachePrompt::metadata() const {
  nlohmann::json tokenizer_config = {
      {"trust_remote_code", model_.trust_remote_code}};
  if (!eos_token_.empty()) {
    tokenizer_config["eos_token"] = eos_token_;
  }
  return {{"model", model_.name()},
          {"tokenizer_config",
           tokenizer_config.dump(
               -1, ' ', true, nlohmann::json::error_handler_t::replace)}};
}

void CachePrompt::run() {
  check();
  LoadedModel loaded =
      prompt_.is_tokens() ? model_.load_tokenizer_optional() : model_.load();
  if (!eos_token_.empty() && loaded.tokenizer != nullptr) {
    loaded.tokenizer->add_eos_token(eos_token_);
  }
  std::vector<int> prompt =
      prompt_.encode(loaded.tokenizer.get(), PromptUse::fills_cache);
  PromptCache cache;
  GenerateOptions options;
  options.max_tokens = 0;
  options.prompt_cache = &cache;
  cache_.apply_to(options);
  options.prompt_progress = [](int done, int total) {
    show_progress({.what = "reading the prompt",
                   .done = static_cast<std::uint64_t>(done),
                   .total = static_cast<std::uint64_t>(total)});
  };
  CancelOnInterrupt cancel(options.cancel);
  try {
    generate_step(prompt, loaded.model, options)->next();
  } catch (const Error& error) {
    if (interrupted()) {
      throw Interrupted();
    }
    throw;
  }
  clear_progress();
  if (interrupted()) {
    throw Interrupted();
  }
  auto entries = metadata();
  entries.merge(metadata_of(
      cache_origin(*loaded.model, loaded.tokenizer.get(), prompt), cache));
  save_prompt_cache(file_, cache, entries);
  char line[160];
  std::snprintf(line,
                sizeof(line),
                "Processed %zu tokens\nPeak memory: %.3f GB\nSaved %.3f MB of "
                "cache\n",
                prompt.size(),
                static_cast<double>(mx::get_peak_memory()) / 1e9,
                static_cast<double>(prompt_cache_nbytes(cache)) / 1e6);
  print(line);
}

}  // namespace

Command add_cache_prompt(CLI::App& command) {
  return command_of<CachePrompt>(command);
}

}  // namespace mlxlm::cli
