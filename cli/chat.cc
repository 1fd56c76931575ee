// mlx-lm chat: main() of mlx_lm/chat.py, with a memory of what was said.
#include <map>
#include <optional>
#include <string>

#include <mlxlm/error.h>
#include <mlxlm/session.h>

#include "cli/arguments.h"
#include "cli/cache_options.h"
#include "cli/chat_loop.h"
#include "cli/command.h"
#include "cli/console.h"
#include "cli/construction_draws.h"
#include "cli/model_options.h"
#include "cli/sampling_options.h"
#include "cli/speculation_options.h"
#include "core/environment.h"
#include "core/file.h"

namespace mlxlm::cli {
namespace {

constexpr char kExamples[] = R"(Examples:
  mlx-lm chat --system-prompt "Answer in one sentence." --temp 0.7
  mlx-lm chat --resume yesterday.safetensors --full-context drop
  printf 'Name a river.\nAnd another.\n' | mlx-lm chat

/help lists the commands of a chat. Ctrl-C stops an answer, Ctrl-D leaves.)";

const std::map<std::string, FullContext> kPolicies = {
    {"stop", FullContext::stop},
    {"rotate", FullContext::rotate},
    {"drop", FullContext::drop_oldest}};

class Chat {
 public:
  void add_to(CLI::App& command);
  void run();

 private:
  void check() const;
  LoadedModel load();
  SessionOptions session_options(const LoadedModel& loaded) const;
  std::string history_file() const;

  ModelOptions model_;
  SamplingOptions sampling_;
  CacheOptions cache_;
  SpeculationOptions speculation_;
  int max_tokens_ = 256;
  std::string system_prompt_;
  std::string template_config_;
  std::string template_file_;
  std::string resume_file_;
  int context_tokens_ = 0;
  std::string full_context_;
  bool no_history_ = false;
  bool pipeline_ = false;
};

void Chat::add_to(CLI::App& command) {
  model_.add_to(command);
  command.add_flag("--pipeline", pipeline_, "Not implemented yet")
      ->group("Model");
  constexpr char kChat[] = "Chat";
  command
      .add_option(
          "-m,--max-tokens", max_tokens_, "Tokens of an answer; -1: no limit")
      ->capture_default_str()
      ->type_name("N")
      ->group(kChat);
  command
      .add_option(
          "--system-prompt", system_prompt_, "Message before all others")
      ->type_name("TEXT")
      ->group(kChat);
  command
      .add_option("--chat-template",
                  template_file_,
                  "File with a template for models without one")
      ->type_name("FILE")
      ->group(kChat);
  command
      .add_option("--chat-template-config",
                  template_config_,
                  "Variables of the chat template, as a JSON\n"
                  "object: '{\"enable_thinking\": false}'")
      ->type_name("JSON")
      ->group(kChat);
  command
      .add_option("--resume", resume_file_, "Go on with a chat that was saved")
      ->type_name("FILE")
      ->group(kChat);
  command
      .add_option("--context",
                  context_tokens_,
                  "Tokens that a chat may have; 0: what the model\n"
                  "was made for")
      ->capture_default_str()
      ->type_name("N")
      ->group(kChat);
  command
      .add_option("--full-context",
                  full_context_,
                  "What to do then: stop; rotate, which drops the\n"
                  "oldest tokens; drop, which drops the oldest turns\n"
                  "(stop; with --max-kv-size: rotate)")
      ->type_name("WHAT")
      ->group(kChat);
  command
      .add_flag("--no-history",
                no_history_,
                "Don't keep typed lines for the next chat")
      ->group(kChat);
  sampling_.add_to(command);
  cache_.add_to(command);
  speculation_.add_to(command);
  command.footer(kExamples);
}

void Chat::check() const {
  if (pipeline_) {
    throw Error(ErrorKind::unsupported, "--pipeline isn't implemented yet");
  }
  check_max_tokens(max_tokens_);
  check_at_least("--context", context_tokens_, 0);
  if (!full_context_.empty() && !kPolicies.contains(full_context_)) {
    throw UsageError("--full-context is stop, rotate or drop, not " +
                     full_context_);
  }
  speculation_.check();
  sampling_.sampler(nullptr);
  sampling_.processors();
  GenerateOptions ignored;
  cache_.apply_to(ignored);
}

LoadedModel Chat::load() {
  if (model_.model.empty() && !resume_file_.empty()) {
    CacheMetadata metadata = load_prompt_cache(resume_file_).second;
    model_.model = metadata["model"];
  }
  model_.draft_head = speculation_.needs_draft_head();
  LoadedModel loaded = model_.load();
  if (sampling_.has_seed()) {
    skip_construction_draws(*loaded.model);
  }
  if (!template_file_.empty()) {
    loaded.tokenizer->set_chat_template(read_file(template_file_));
  } else if (!loaded.tokenizer->has_chat_template()) {
    throw Error(ErrorKind::chat_template,
                model_.name() +
                    " has no chat template: it wasn't made for chats. Give it "
                    "one with --chat-template");
  }
  return loaded;
}

SessionOptions Chat::session_options(const LoadedModel& loaded) const {
  SessionOptions options;
  cache_.apply_to(options.generate);
  options.generate.max_tokens = max_tokens_;
  options.generate.sampler = sampling_.sampler(loaded.tokenizer.get());
  options.generate.logits_processors = sampling_.processors();
  speculation_.apply_to(options.generate, loaded);
  options.template_kwargs_json = template_config_;
  options.context_tokens = context_tokens_;
  if (!full_context_.empty()) {
    options.when_full = kPolicies.at(full_context_);
  } else if (options.generate.max_kv_size > 0) {
    options.when_full = FullContext::rotate;
  }
  return options;
}

std::string Chat::history_file() const {
  return no_history_ ? ""
                     : (user_cache_folder(process_environment) / "mlx-lm" /
                        "chat_history")
                           .string();
}

void Chat::run() {
  sampling_.apply_seed();
  check();
  LoadedModel loaded = load();
  auto reader = make_line_reader(history_file());
  ChatLoop({.loaded = loaded,
            .model_name = model_.name(),
            .options = session_options(loaded),
            .system_prompt = system_prompt_,
            .resume_file = resume_file_},
           *reader)
      .run();
}

}  // namespace

Command add_chat(CLI::App& command) { return command_of<Chat>(command); }

}  // namespace mlxlm::cli
