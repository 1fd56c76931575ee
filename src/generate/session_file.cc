// Sessions in prompt-cache files.
#include <climits>
#include <cstdint>

#include <nlohmann/json.hpp>

#include "core/json.h"
#include "generate/message_json.h"
#include "generate/prefill.h"
#include "generate/session_state.h"

namespace mlxlm {
namespace {

using nlohmann::json;

constexpr char kEntry[] = "mlxlm.session";
constexpr int kVersion = 1;

json json_of(const ChatPiece& piece) {
  return {{"text", piece.text},
          {"tokens", piece.num_tokens},
          {"message", piece.message}};
}

// A member of the session's entry. Throws Error{format}.
const json& member(const json& object,
                   const char* name,
                   json::value_t type,
                   const std::string& path) {
  auto found = object.is_object() ? object.find(name) : object.end();
  bool whole = found != object.end() && found->is_number_integer();
  if (found == object.end() ||
      (found->type() != type &&
       !(whole && type == json::value_t::number_integer))) {
    throw Error(ErrorKind::format,
                path + " has an unusable chat: its \"" + name +
                    "\" is missing or of the wrong type");
  }
  return *found;
}

int number(const json& object, const char* name, const std::string& path) {
  const json& value = member(object, name, json::value_t::number_integer, path);
  auto wide = value.get<std::int64_t>();
  if (wide < -1 || wide > INT_MAX) {
    throw Error(ErrorKind::format,
                path + " has an unusable chat: its \"" + name + "\" is " +
                    describe_json(value));
  }
  return static_cast<int>(wide);
}

json entry_in(const CacheMetadata& metadata, const std::string& path) {
  auto entry = metadata.find(kEntry);
  if (entry == metadata.end()) {
    throw Error(ErrorKind::argument,
                path + " holds a prompt cache, but no chat");
  }
  json chat = parse_json(entry->second, "the chat in " + path);
  if (number(chat, "version", path) != kVersion) {
    throw Error(ErrorKind::format,
                path + " has a chat of version " +
                    describe_json(chat["version"]) + ", this program knows " +
                    std::to_string(kVersion));
  }
  return chat;
}

std::vector<Message> messages_in(const json& chat, const std::string& path) {
  std::vector<Message> messages;
  for (const json& value :
       member(chat, "messages", json::value_t::array, path)) {
    messages.push_back(message_of(value));
  }
  return messages;
}

// The tokens that the layers have read, with their pieces.
ChatTokens tokens_in(const json& chat,
                     const CacheMetadata& metadata,
                     const PromptCache& cache,
                     const std::string& path) {
  auto origin = origin_in(metadata);
  std::vector<int> held =
      origin ? origin->tokens.value_or(std::vector<int>{}) : std::vector<int>{};
  int offset = prompt_cache_offset(cache);
  if (offset != 0 && offset != static_cast<int>(held.size())) {
    throw Error(ErrorKind::format,
                path + " names " + std::to_string(held.size()) +
                    " tokens, but its layers have read " +
                    std::to_string(offset));
  }
  std::vector<ChatPiece> pieces;
  for (const json& value : member(chat, "pieces", json::value_t::array, path)) {
    pieces.push_back(
        {member(value, "text", json::value_t::string, path).get<std::string>(),
         number(value, "tokens", path),
         number(value, "message", path)});
  }
  return ChatTokens(std::move(held), std::move(pieces));
}

}  // namespace

void Session::save(const std::string& path, const CacheMetadata& more) const {
  state_->check_idle();
  const State& state = *state_;
  json chat{{"version", kVersion},
            {"messages", json::array()},
            {"tools", state.tools_json},
            {"pieces", json::array()}};
  for (const Message& message : state.messages) {
    chat["messages"].push_back(mlxlm::json_of(message));
  }
  for (const ChatPiece& piece : state.tokens.pieces()) {
    chat["pieces"].push_back(json_of(piece));
  }
  // Without the draft model's, which can't be compared with anything.
  PromptCache own = state.cache.layers();
  if (own.empty()) {
    own = state.model->make_cache();
  }
  own.resize(state.num_model_layers());
  CacheMetadata metadata = more;
  metadata.merge(metadata_of(
      cache_origin(*state.model, state.tokenizer.get(), state.tokens.held()),
      own));
  metadata[kEntry] = dumped(chat);
  save_prompt_cache(path, own, metadata);
}

Session Session::resume(const std::string& path,
                        ModelPtr model,
                        TokenizerPtr tokenizer,
                        SessionOptions options) {
  auto [cache, metadata] = load_prompt_cache(path);
  json chat = entry_in(metadata, path);
  Session session(std::move(model), std::move(tokenizer), std::move(options));
  State& state = *session.state_;
  check_saved_cache(path, cache, metadata, *state.model, state.tokenizer.get());
  state.messages = messages_in(chat, path);
  state.tools_json =
      member(chat, "tools", json::value_t::string, path).get<std::string>();
  state.tokens = tokens_in(chat, metadata, cache, path);
  if (state.tokens.count() > 0) {
    state.adopt(std::move(cache));
  }
  return session;
}

}  // namespace mlxlm
