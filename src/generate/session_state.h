// What a session is made of; shared with the streams of its answers.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <mlxlm/session.h>

#include "generate/chat_tokens.h"
#include "generate/prefix_access.h"
#include "generate/rewindable_cache.h"

namespace mlxlm {

class Session::State {
 public:
  // A prompt that fits the context, before anything is read.
  struct Plan {
    ChatPrompt prompt;
    std::vector<int> boundaries;  // tokens before which messages end
    TurnStatistics statistics;
    int max_tokens = 0;
  };

  State(ModelPtr model, TokenizerPtr tokenizer, SessionOptions options);

  // Throws Error{argument} while an answer is under way.
  void check_idle() const;
  int context_tokens() const;
  std::size_t num_model_layers() const;

  void set_system(const std::string& text);
  void truncate(std::size_t count);
  // How many messages are left without the last answer.
  std::size_t count_without_answer() const;

  // May drop old turns. Throws Error{argument} if the context is too small.
  Plan plan();

  // Goes back to what the prompt has in common with the cache; returns how many
  // tokens that are.
  int rewind_for(Plan& plan);

  // Reads tokens `from` to `to` of the prompt. Throws Error{cancelled}.
  void read(const std::vector<int>& prompt,
            int from,
            int to,
            const GenerateOptions& generate);

  // The prefix store of the options, if they have one.
  std::optional<PrefixAccess> prefixes() const;

  // Takes a saved model's cache that has read the tokens that are held.
  void adopt(PromptCache layers);

  // Nothing is known of the cache any more.
  void forget_cache();

  ModelPtr model;
  TokenizerPtr tokenizer;
  SessionOptions options;
  std::vector<Message> messages;
  std::string tools_json;
  ChatTokens tokens;
  RewindableCache cache;
  TurnStatistics last_turn;
  TurnStatistics total;
  bool answering = false;

 private:
  // Takes what others have read of the prompt, if that is more than `reused`;
  // returns how much there is then.
  int reuse_prefix(const ChatPrompt& prompt, int reused);
  // Fresh caches, if there are none.
  void make_layers();
  std::string rendered(std::size_t num_messages, bool for_answer) const;
  ChatPrompt whole_prompt() const;
  std::vector<int> boundaries_of(const ChatPrompt& prompt) const;
  // The oldest turn that isn't the last; false if there is none.
  bool drop_oldest_turn();
  int drop_until(int max_tokens, ChatPrompt& prompt);
};

// The stream of one answer. `before`: the messages to go back to if there is
// none.
GenerationStream answer_stream(std::shared_ptr<Session::State> state,
                               Session::State::Plan plan,
                               std::vector<Message> before);

}  // namespace mlxlm
