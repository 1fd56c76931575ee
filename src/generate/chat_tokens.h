// The tokens that a session's cache holds, and the text they stand for.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <mlxlm/tokenizer.h>

namespace mlxlm {

// Some of the tokens, in their order, with their text.
struct ChatPiece {
  std::string text;
  int num_tokens = 0;
  // The message that the model drew them for; -1: the tokenizer made them of
  // rendered text.
  int message = -1;
};

// A rendered chat as tokens; the pieces together are all of it.
struct ChatPrompt {
  std::vector<int> tokens;
  std::vector<ChatPiece> pieces;
};

class ChatTokens {
 public:
  ChatTokens() = default;
  // As saved; the pieces stand for the first of the tokens. Throws
  // Error{format} if there are more of them than tokens.
  ChatTokens(std::vector<int> tokens, std::vector<ChatPiece> pieces);

  const std::vector<int>& held() const { return held_; }
  const std::vector<ChatPiece>& pieces() const { return pieces_; }
  int count() const { return static_cast<int>(held_.size()); }

  // A rendered chat. Where it repeats answers, their tokens are those that were
  // drawn, which need not be those that the tokenizer makes of their text.
  // White space that the template takes off an answer's ends doesn't matter.
  ChatPrompt encode(const Tokenizer& tokenizer, const std::string& text) const;

  // What is held now is the first `num_tokens` of a prompt.
  void set(ChatPrompt prompt, int num_tokens);

  // Drawn tokens follow: a message's text and what ended it ("": nothing).
  // Without `message` (-1) they stand for no text.
  void append(const std::vector<int>& tokens,
              int message,
              const std::string& text,
              const std::string& end_text);

  // Only the first tokens are left.
  void truncate(int num_tokens);

  // The answers of messages from this one on are no more.
  void forget_answers(int first_message);

 private:
  std::vector<int> held_;
  std::vector<ChatPiece> pieces_;
};

}  // namespace mlxlm
