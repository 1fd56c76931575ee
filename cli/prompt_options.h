// The prompt: where its text comes from and how it becomes tokens.
#pragma once

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include <mlxlm/tokenizer.h>

namespace mlxlm::cli {

enum class PromptUse {
  whole,            // a whole prompt
  continues_cache,  // the part after what a cache holds
  fills_cache,      // a beginning that other prompts continue
};

class PromptOptions {
 public:
  // `for_cache`: without what belongs to an answer.
  void add_to(CLI::App& command, bool for_cache = false);

  // Whether --tokens was given.
  bool is_tokens() const { return tokens_option_->count() > 0; }

  // Speaks of options that don't go together. Throws UsageError.
  void check() const;

  // Whether there is one, of whatever kind.
  bool given() const { return is_tokens() || prompt_option_->count() > 0; }

  // Token ids, at least one. `tokenizer` may be null with --tokens. Throws
  // Error{argument, chat_template}.
  std::vector<int> encode(const Tokenizer* tokenizer, PromptUse use) const;

 private:
  std::string text() const;
  std::string rendered(const Tokenizer& tokenizer,
                       std::string text,
                       PromptUse use) const;

  std::string prompt_ = "hello";
  std::string tokens_;
  std::string system_prompt_;
  std::string prefill_response_;
  std::string template_config_;
  bool ignore_template_ = false;
  bool default_template_ = false;
  CLI::Option* tokens_option_ = nullptr;
  CLI::Option* prompt_option_ = nullptr;
  CLI::Option* system_option_ = nullptr;
  CLI::Option* prefill_option_ = nullptr;
  CLI::Option* config_option_ = nullptr;
};

}  // namespace mlxlm::cli
