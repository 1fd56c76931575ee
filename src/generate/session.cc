// The public face of a session.
#include <utility>

#include "generate/message_json.h"
#include "generate/session_state.h"

namespace mlxlm {
namespace {

// Answers after `change`, or leaves the messages as they were.
template <typename Change>
GenerationStream answer(const std::shared_ptr<Session::State>& state,
                        const Change& change) {
  state->check_idle();
  std::vector<Message> before = state->messages;
  try {
    change();
    return answer_stream(state, state->plan(), before);
  } catch (...) {
    state->messages = std::move(before);
    throw;
  }
}

}  // namespace

Session::Session(ModelPtr model, TokenizerPtr tokenizer, SessionOptions options)
    : Session(std::make_shared<State>(
          std::move(model), std::move(tokenizer), std::move(options))) {}
Session::Session(std::shared_ptr<State> state) : state_(std::move(state)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

const std::vector<Message>& Session::messages() const {
  return state_->messages;
}

SessionOptions& Session::options() { return state_->options; }

void Session::set_system(const std::string& text) {
  state_->check_idle();
  state_->set_system(text);
}

void Session::set_tools(const std::string& tools_json) {
  state_->check_idle();
  state_->tools_json = tools_json;
}

void Session::add(Message message) {
  state_->check_idle();
  json_of(message);  // throws for fields that are no object
  state_->messages.push_back(std::move(message));
}

void Session::truncate(std::size_t count) {
  state_->check_idle();
  state_->truncate(count);
}

void Session::reset() {
  const auto& all = messages();
  truncate(!all.empty() && all.front().role == "system" ? 1 : 0);
}

GenerationStream Session::respond(const std::string& text) {
  return answer(state_, [&] {
    state_->messages.push_back({"user", text, ""});
  });
}

GenerationStream Session::respond() {
  return answer(state_, [] {});
}

GenerationStream Session::regenerate() {
  return answer(state_,
                [&] { state_->truncate(state_->count_without_answer()); });
}

GenerationStream Session::edit(std::size_t message, const std::string& text) {
  return answer(state_, [&] {
    auto& all = state_->messages;
    if (message >= all.size() || all[message].role == "system" ||
        all[message].role == "assistant") {
      throw Error(ErrorKind::argument,
                  "message " + std::to_string(message) +
                      " can't be edited: it must be one of the " +
                      std::to_string(all.size()) +
                      ", and not the system's or the assistant's");
    }
    state_->truncate(message + 1);
    all.back().content = text;
  });
}

Session Session::fork() const {
  state_->check_idle();
  auto copy = std::make_shared<State>(*state_);
  copy->cache = state_->cache.fork();
  copy->options.generate.cancel = {};
  return Session(std::move(copy));
}

const TurnStatistics& Session::last_turn() const { return state_->last_turn; }
const TurnStatistics& Session::total() const { return state_->total; }
int Session::cached_tokens() const { return state_->tokens.count(); }
std::size_t Session::cache_bytes() const {
  return prompt_cache_nbytes(state_->cache.layers());
}
std::size_t Session::checkpoint_bytes() const {
  return state_->cache.mark_bytes();
}
int Session::context_tokens() const { return state_->context_tokens(); }

}  // namespace mlxlm
