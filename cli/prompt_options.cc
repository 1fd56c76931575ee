#include "cli/prompt_options.h"

#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include <mlxlm/error.h>

#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/console.h"
#include "core/json.h"

namespace mlxlm::cli {
namespace {

using nlohmann::json;

constexpr char kGroup[] = "Prompt";
constexpr char kQuery[] = "<query>";

}  // namespace

void PromptOptions::add_to(CLI::App& command, bool for_cache) {
  prompt_option_ =
      command
          .add_option("-p,--prompt",
                      prompt_,
                      "Message to the model; - reads standard input")
          ->capture_default_str()
          ->type_name("TEXT")
          ->group(kGroup);
  tokens_option_ = command
                       .add_option("--tokens",
                                   tokens_,
                                   "Prompt as token ids, \"1,2,3\", as they\n"
                                   "stand; needs no tokenizer")
                       ->type_name("IDS")
                       ->group(kGroup);
  system_option_ = command
                       .add_option("--system-prompt",
                                   system_prompt_,
                                   "System message before the prompt")
                       ->type_name("TEXT")
                       ->group(kGroup);
  if (!for_cache) {
    prefill_option_ = command
                          .add_option("--prefill-response",
                                      prefill_response_,
                                      "Begin of the answer, to be continued")
                          ->type_name("TEXT")
                          ->group(kGroup);
  }
  command
      .add_flag("--ignore-chat-template",
                ignore_template_,
                "Take the prompt as it stands")
      ->group(kGroup);
  command
      .add_flag("--use-default-chat-template",
                default_template_,
                "Without effect, as in mlx-lm 0.32: a model's own\n"
                "template is used if it has one")
      ->group(kGroup);
  config_option_ = command
                       .add_option("--chat-template-config",
                                   template_config_,
                                   "Variables of the chat template, as a JSON\n"
                                   "object: '{\"enable_thinking\": false}'")
                       ->type_name("JSON")
                       ->group(kGroup);
}

void PromptOptions::check() const {
  if (default_template_) {
    print_warning(
        "--use-default-chat-template has no effect: there are no default "
        "templates, a model's own is used if it has one");
  }
  if (!is_tokens()) {
    return;
  }
  for (const CLI::Option* option :
       {prompt_option_, system_option_, prefill_option_, config_option_}) {
    if (option != nullptr && option->count() > 0) {
      throw UsageError(
          "--tokens is a whole prompt: it can't go together with " +
          option->get_name());
    }
  }
}

std::string PromptOptions::text() const {
  std::string prompt = unescaped(prompt_);
  return prompt == "-" ? read_standard_input() : prompt;
}

std::vector<int> PromptOptions::encode(const Tokenizer* tokenizer,
                                       PromptUse use) const {
  if (is_tokens()) {
    return parse_token_ids(tokens_, "--tokens");
  }
  std::string prompt = text();
  bool use_template = !ignore_template_ && tokenizer->has_chat_template();
  if (use_template) {
    prompt = rendered(*tokenizer, std::move(prompt), use);
  } else if (!tokenizer->has_chat_template()) {
    for (const CLI::Option* option :
         {system_option_, prefill_option_, config_option_}) {
      if (option != nullptr && option->count() > 0) {
        print_warning(option->get_name() +
                      " has no effect: the model has no chat template");
      }
    }
  }
  std::vector<int> tokens = tokenizer->encode(prompt, !use_template);
  if (tokens.empty()) {
    throw Error(ErrorKind::argument,
                "--prompt is empty: there is nothing to continue");
  }
  return tokens;
}

std::string PromptOptions::rendered(const Tokenizer& tokenizer,
                                    std::string text,
                                    PromptUse use) const {
  bool has_prefill = prefill_option_ != nullptr && prefill_option_->count() > 0;
  bool is_open = has_prefill || use == PromptUse::fills_cache;
  json messages = json::array();
  if (system_option_->count() > 0) {
    messages.push_back({{"role", "system"}, {"content", system_prompt_}});
  }
  messages.push_back({{"role", "user"}, {"content", std::move(text)}});
  if (has_prefill) {
    messages.push_back({{"role", "assistant"}, {"content", prefill_response_}});
  }
  ChatTemplateOptions options;
  options.add_generation_prompt = !is_open;
  options.continue_final_message = is_open;
  if (config_option_->count() > 0) {
    json config = parse_json(
        template_config_, "--chat-template-config", {}, ErrorKind::argument);
    if (!config.is_object()) {
      throw Error(ErrorKind::argument,
                  "--chat-template-config must be a JSON object, not " +
                      describe_json(config));
    }
    options.kwargs_json = dumped(config);
  }
  std::string prompt = tokenizer.apply_chat_template(dumped(messages), options);
  if (use != PromptUse::continues_cache) {
    return prompt;
  }
  // The cache holds what comes before the last message's content.
  messages.back()["content"] = kQuery;
  options.kwargs_json.clear();
  std::size_t start =
      tokenizer.apply_chat_template(dumped(messages), options).find(kQuery);
  if (start == std::string::npos || start > prompt.size()) {
    throw Error(ErrorKind::chat_template,
                "the chat template changes the last message, so a prompt "
                "cache can't be continued; try --ignore-chat-template");
  }
  return prompt.substr(start);
}

}  // namespace mlxlm::cli
