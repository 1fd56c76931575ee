// Sessions: a chat whose model reads every token once.
//
//   mlxlm::Session session(model, tokenizer);
//   session.set_system("Answer in one sentence.");
//   for (const auto& part : session.respond("Why is the sky blue?")) {
//     std::cout << part.text << std::flush;
//   }
//   for (const auto& part : session.regenerate()) {
//     std::cout << part.text << std::flush;
//   }
//   session.save("chat.safetensors");
//   auto again =
//       mlxlm::Session::resume("chat.safetensors", model, tokenizer);
//
// Method: the messages are rendered with the chat template for every answer,
// and of the tokens only those are read that don't continue what the cache
// holds. The tokens of an answer are those that were drawn, however the
// tokenizer would split its text.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include <mlxlm/generate.h>

namespace mlxlm {

struct Message {
  std::string role;  // "system", "user", "assistant", "tool"
  std::string content;
  // Further fields that the template looks at, as a JSON object, e.g.
  // {"tool_calls": [...]}; "": none.
  std::string fields_json;

  bool operator==(const Message&) const = default;
};

// What happens when the context is full.
enum class FullContext {
  // A prompt that doesn't fit is an Error{argument}, an answer ends with
  // "length".
  stop,
  // The caches that grow drop their oldest tokens but four and read on.
  rotate,
  // The oldest turns are dropped, the system message stays; what is left is
  // read again. An answer ends with "length".
  drop_oldest,
};

struct SessionOptions {
  // Of every answer. prompt_cache is not used; max_kv_size, draft_model and the
  // KV quantization belong to the session and stay as they are. What sessions
  // with the same prefix_store (and tenant) have in common, such as a system
  // message, is read by the first of them only.
  GenerateOptions generate;
  std::string template_kwargs_json;  // as in ChatTemplateOptions
  int context_tokens = 0;            // 0: what the model was made for
  FullContext when_full = FullContext::stop;
  // Caches that can't drop their newest tokens (sliding windows, recurrent
  // states) are copied at the boundaries of messages to come back to. Beyond
  // so many bytes the oldest copies are dropped; the newest is kept in any
  // case.
  std::size_t checkpoint_bytes = std::size_t{1} << 30;
};

// What an answer cost. prompt_tokens is reused_tokens, of the session's own
// cache or the prefix store, plus what was read.
struct TurnStatistics {
  int prompt_tokens = 0;
  int reused_tokens = 0;
  // Of those read now, the ones that had been read before at the same place,
  // but that the cache couldn't go back to.
  int reread_tokens = 0;
  int generated_tokens = 0;
  int dropped_messages = 0;   // by FullContext::drop_oldest
  bool context_full = false;  // and acted on as FullContext says

  int read_tokens() const { return prompt_tokens - reused_tokens; }
};

// Used by one thread at a time. While a stream of an answer lives, nothing else
// may be done with its session but look at it: Error{argument}.
class Session {
 public:
  // Throws Error{argument} without a tokenizer, Error{chat_template} if that
  // has no chat template.
  Session(ModelPtr model, TokenizerPtr tokenizer, SessionOptions options = {});
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  const std::vector<Message>& messages() const;
  // May be changed between answers: sampler, processors, lengths, stops,
  // cancel, deadline, template_kwargs_json.
  SessionOptions& options();

  // The message before all others; "" for none.
  void set_system(const std::string& text);
  // A JSON array of tool definitions for the template; "": none.
  void set_tools(const std::string& tools_json);
  // Adds a message without answering, e.g. a tool's result.
  void add(Message message);
  // Keeps the first `count` messages.
  void truncate(std::size_t count);
  // Drops all messages but the system message.
  void reset();

  // Adds a message of the user and answers. The answer becomes a message when
  // the stream ends or goes: what there is of it, if it was cancelled, or
  // nothing if it hadn't begun; then the messages are as before. Throws as
  // stream_generate(), and Error{chat_template}; the messages are as before.
  GenerationStream respond(const std::string& text);
  // Answers the messages as they are.
  GenerationStream respond();
  // Answers the last message that isn't the assistant's once more.
  GenerationStream regenerate();
  // Replaces the content of a message, drops those after it, and answers.
  GenerationStream edit(std::size_t message, const std::string& text);

  // An independent session with the same past. Nothing is read again; of the
  // cache's buffers there are two once both have read on.
  Session fork() const;

  // Writes a prompt-cache file (save_prompt_cache) with the messages among its
  // metadata, and `more`. Checkpoints aren't saved.
  void save(const std::string& path, const CacheMetadata& more = {}) const;
  // Throws as load_prompt_cache() and check_saved_cache(), and Error{argument}
  // for a prompt cache without messages.
  static Session resume(const std::string& path,
                        ModelPtr model,
                        TokenizerPtr tokenizer,
                        SessionOptions options = {});

  // Of the last answer, and the sum of all.
  const TurnStatistics& last_turn() const;
  const TurnStatistics& total() const;
  int cached_tokens() const;
  std::size_t cache_bytes() const;
  std::size_t checkpoint_bytes() const;
  // The limit that FullContext is about; 0: none.
  int context_tokens() const;

  class State;

 private:
  explicit Session(std::shared_ptr<State> state);

  std::shared_ptr<State> state_;
};

}  // namespace mlxlm
