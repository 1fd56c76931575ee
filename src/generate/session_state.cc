#include "generate/session_state.h"

#include <algorithm>
#include <iterator>

#include <nlohmann/json.hpp>

#include "cache/rotating_cache.h"
#include "core/common_length.h"
#include "core/json.h"
#include "generate/drafter.h"
#include "generate/message_json.h"
#include "generate/options.h"
#include "generate/prefill.h"

namespace mlxlm {
namespace {

using nlohmann::json;

// Boundaries closer to what is held aren't worth a copy of the cache.
constexpr int kLeastTokensBetweenMarks = 16;

// Of a rotating cache, as make_cache() has it.
constexpr int kKeptTokens = 4;

bool is_user(const Message& message) { return message.role == "user"; }
bool is_system(const Message& message) { return message.role == "system"; }
bool is_assistant(const Message& message) {
  return message.role == "assistant";
}

}  // namespace

Session::State::State(ModelPtr model,
                      TokenizerPtr tokenizer,
                      SessionOptions options)
    : model(std::move(model)),
      tokenizer(std::move(tokenizer)),
      options(std::move(options)) {
  if (!this->tokenizer) {
    throw Error(ErrorKind::argument, "a session needs a tokenizer");
  }
  if (!this->tokenizer->has_chat_template()) {
    throw Error(ErrorKind::chat_template,
                "the model has no chat template, so it can't take messages");
  }
  check_at_least("context_tokens", this->options.context_tokens, 0);
  GenerateOptions& generate = this->options.generate;
  if (this->options.when_full == FullContext::rotate &&
      generate.max_kv_size == 0) {
    generate.max_kv_size = context_tokens();
  }
}

void Session::State::check_idle() const {
  if (answering) {
    throw Error(ErrorKind::argument,
                "the session is answering: let its stream end, or drop it");
  }
}

int Session::State::context_tokens() const {
  if (options.context_tokens > 0) {
    return options.context_tokens;
  }
  return options.generate.max_kv_size > 0 ? options.generate.max_kv_size
                                          : model->context_tokens();
}

std::size_t Session::State::num_model_layers() const {
  return model->make_cache().size();
}

void Session::State::set_system(const std::string& text) {
  bool has_system = !messages.empty() && is_system(messages.front());
  tokens.forget_answers(0);  // their messages get other numbers
  if (has_system) {
    messages.erase(messages.begin());
  }
  if (!text.empty()) {
    messages.insert(messages.begin(), {"system", text, ""});
  }
}

void Session::State::truncate(std::size_t count) {
  if (count < messages.size()) {
    messages.resize(count);
    tokens.forget_answers(static_cast<int>(count));
  }
}

std::size_t Session::State::count_without_answer() const {
  auto last =
      std::find_if_not(messages.rbegin(), messages.rend(), is_assistant);
  return static_cast<std::size_t>(messages.rend() - last);
}

std::string Session::State::rendered(std::size_t num_messages,
                                     bool for_answer) const {
  json list = json::array();
  for (std::size_t i = 0; i < num_messages; ++i) {
    list.push_back(json_of(messages[i]));
  }
  return tokenizer->apply_chat_template(
      dumped(list),
      {.add_generation_prompt = for_answer,
       .tools_json = tools_json,
       .kwargs_json = options.template_kwargs_json});
}

ChatPrompt Session::State::whole_prompt() const {
  return tokens.encode(*tokenizer, rendered(messages.size(), true));
}

// Where the newest message begins and ends, as far as the template can say.
std::vector<int> Session::State::boundaries_of(const ChatPrompt& prompt) const {
  const int last = static_cast<int>(prompt.tokens.size()) - 1;
  std::vector<int> boundaries;
  for (std::size_t count : {messages.size() - 1, messages.size()}) {
    try {
      if (count > 0) {
        auto part = tokens.encode(*tokenizer, rendered(count, false));
        boundaries.push_back(
            std::min(common_length(part.tokens, prompt.tokens), last));
      }
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::chat_template) {
        throw;
      }
      // A template may refuse a beginning, e.g. a system message alone.
    }
  }
  return boundaries;
}

bool Session::State::drop_oldest_turn() {
  auto first = std::ranges::find_if_not(messages, is_system);
  if (first == messages.end()) {
    return false;
  }
  auto next = std::find_if(first + 1, messages.end(), is_user);
  if (next == messages.end()) {
    return false;
  }
  tokens.forget_answers(0);  // their messages get other numbers
  messages.erase(first, next);
  return true;
}

// At least a quarter of the context is for the answer, unless it is to be
// shorter. When turns are dropped, half of the context becomes free, so that it
// doesn't happen, with all the reading again, in every turn.
int Session::State::drop_until(int max_tokens, ChatPrompt& prompt) {
  const int context = context_tokens();
  const int quarter = context / 4;
  const int room = max_tokens < 0 ? quarter : std::min(max_tokens, quarter);
  auto size = [&] { return static_cast<int>(prompt.tokens.size()); };
  if (size() + room <= context) {
    return 0;
  }
  std::size_t before = messages.size();
  while (size() > context / 2 && drop_oldest_turn()) {
    prompt = whole_prompt();
  }
  return static_cast<int>(before - messages.size());
}

Session::State::Plan Session::State::plan() {
  const GenerateOptions& generate = options.generate;
  check_max_tokens(generate);
  if (count_without_answer() == 0 || is_system(messages.back())) {
    throw Error(ErrorKind::argument, "there is no message to answer");
  }
  Plan plan{.prompt = whole_prompt(), .max_tokens = generate.max_tokens};
  const int context = context_tokens();
  if (context > 0 && options.when_full != FullContext::rotate) {
    if (options.when_full == FullContext::drop_oldest) {
      plan.statistics.dropped_messages =
          drop_until(generate.max_tokens, plan.prompt);
    }
    int room = context - static_cast<int>(plan.prompt.tokens.size());
    if (room < 1) {
      throw Error(ErrorKind::argument,
                  "the context of " + std::to_string(context) +
                      " tokens is full: the messages have " +
                      std::to_string(plan.prompt.tokens.size()));
    }
    if (generate.max_tokens < 0 || room < generate.max_tokens) {
      plan.max_tokens = room;
    }
  }
  check_options(plan.prompt.tokens, *model, generate);
  if (generate.draft_model) {
    check_options(plan.prompt.tokens, *generate.draft_model, generate);
  }
  plan.statistics.prompt_tokens = static_cast<int>(plan.prompt.tokens.size());
  plan.statistics.context_full = plan.statistics.dropped_messages > 0;
  return plan;
}

void Session::State::make_layers() {
  PromptCache& layers = cache.layers();
  if (!layers.empty()) {
    return;
  }
  const int limit = options.generate.max_kv_size;
  layers = model->make_cache(limit);
  std::ranges::copy(make_draft_cache(*model, options.generate),
                    std::back_inserter(layers));
  if (options.when_full != FullContext::rotate || limit == 0) {
    return;
  }
  // Architectures that choose their caches themselves, too.
  for (CachePtr& layer : layers) {
    if (layer->kind() == "KVCache") {
      layer = make_rotating_cache(limit, kKeptTokens);
    }
  }
}

// Caches that rotate by FullContext are others than those of the model.
std::optional<PrefixAccess> Session::State::prefixes() const {
  if (!options.generate.prefix_store) {
    return std::nullopt;
  }
  return PrefixAccess(model,
                      options.generate,
                      options.when_full == FullContext::rotate ? "rotate" : "");
}

int Session::State::reuse_prefix(const ChatPrompt& prompt, int reused) {
  const auto store = prefixes();
  auto match = store ? store->find(prompt.tokens) : PrefixMatch{};
  if (match.reused_tokens <= reused) {
    return reused;
  }
  cache = RewindableCache(std::move(match.cache));
  tokens.set(prompt, match.reused_tokens);
  if (cache.needs_marks()) {
    cache.mark(match.reused_tokens, options.checkpoint_bytes);
  }
  return match.reused_tokens;
}

int Session::State::rewind_for(Plan& plan) {
  make_layers();
  // At least one token is read: it gives the next one.
  const ChatPrompt& prompt = plan.prompt;
  int common = std::min(common_length(prompt.tokens, tokens.held()),
                        static_cast<int>(prompt.tokens.size()) - 1);
  if (cache.needs_marks()) {
    plan.boundaries = boundaries_of(prompt);
    if (common == tokens.count() && common > 0) {
      cache.mark(common, options.checkpoint_bytes);
    }
  }
  int reused = cache.rewind(tokens.count(), common);
  tokens.truncate(reused);
  if (reused == 0 || reused < common) {
    reused = reuse_prefix(prompt, reused);
  }
  make_layers();  // if nothing was left
  plan.statistics.reused_tokens = reused;
  plan.statistics.reread_tokens = std::max(common - reused, 0);
  // The first boundary is only worth it if it is new.
  if (plan.boundaries.size() == 2 &&
      plan.boundaries.front() < reused + kLeastTokensBetweenMarks) {
    plan.boundaries.erase(plan.boundaries.begin());
  }
  return reused;
}

void Session::State::read(const std::vector<int>& prompt,
                          int from,
                          int to,
                          const GenerateOptions& generate) {
  auto progress = [&](int done) {
    if (generate.prompt_progress) {
      generate.prompt_progress(done, to + 1 - from);
    }
  };
  if (drafts_with_cache(generate)) {
    GenerateOptions reading = generate;
    reading.max_tokens = 0;
    reading.prompt_cache = &cache.layers();
    speculative_generate_step({prompt.begin() + from, prompt.begin() + to},
                              model,
                              generate.draft_model,
                              reading)
        ->next();
    progress(to - from);
    return;
  }
  // prefill() leaves the last token.
  Prompt part{{prompt.begin() + from, prompt.begin() + to + 1},
              std::nullopt,
              to + 1 - from};
  prefill(*model, cache.layers(), part, generate, progress);
}

void Session::State::adopt(PromptCache layers) {
  const GenerateOptions& generate = options.generate;
  if (drafts_with_cache(generate)) {
    auto drafter =
        make_drafter(model, make_draft_cache(*model, generate), generate);
    drafter->begin(tokens.held());
    drafter->read_up_to(0);
    std::ranges::copy(drafter->cache(), std::back_inserter(layers));
  }
  cache = RewindableCache(std::move(layers));
}

void Session::State::forget_cache() {
  cache.clear();
  tokens = {};
}

}  // namespace mlxlm
