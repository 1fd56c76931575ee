#include "generate/chat_tokens.h"

#include <algorithm>
#include <optional>

#include <mlxlm/error.h>

#include "core/common_length.h"

namespace mlxlm {
namespace {

constexpr std::string_view kWhiteSpace = " \t\n\r\f\v";

std::string_view without_leading(std::string_view text) {
  text.remove_prefix(
      std::min(text.find_first_not_of(kWhiteSpace), text.size()));
  return text;
}

std::string_view without_trailing(std::string_view text) {
  return text.substr(0, text.find_last_not_of(kWhiteSpace) + 1);
}

// How much of `text` a piece stands for; none if it doesn't begin with it.
// After an answer something must follow, or it isn't that answer's end.
std::optional<std::size_t> matched_length(const ChatPiece& piece,
                                          std::string_view text) {
  if (piece.message < 0) {
    return text.starts_with(piece.text) ? std::optional(piece.text.size())
                                        : std::nullopt;
  }
  std::string_view answer = piece.text;
  for (std::string_view form : {answer,
                                without_leading(answer),
                                without_trailing(without_leading(answer))}) {
    if (text.starts_with(form) && text.size() > form.size()) {
      return form.size();
    }
  }
  return std::nullopt;
}

}  // namespace

ChatTokens::ChatTokens(std::vector<int> tokens, std::vector<ChatPiece> pieces)
    : held_(std::move(tokens)), pieces_(std::move(pieces)) {
  std::size_t left = held_.size();
  for (const ChatPiece& piece : pieces_) {
    if (piece.num_tokens < 0 ||
        static_cast<std::size_t>(piece.num_tokens) > left) {
      throw Error(ErrorKind::format,
                  "the pieces of the chat have more tokens than the cache");
    }
    left -= static_cast<std::size_t>(piece.num_tokens);
  }
}

ChatPrompt ChatTokens::encode(const Tokenizer& tokenizer,
                              const std::string& text) const {
  ChatPrompt drawn;
  std::size_t at = 0;
  int count = 0;
  for (const ChatPiece& piece : pieces_) {
    auto length = matched_length(piece, std::string_view(text).substr(at));
    if (!length) {
      break;
    }
    at += *length;
    count += piece.num_tokens;
    drawn.pieces.push_back(piece);
  }
  auto whole = tokenizer.encode(text, false);
  if (count <= common_length(whole, held_)) {
    int size = static_cast<int>(whole.size());
    return {std::move(whole), {{text, size}}};
  }
  drawn.tokens.assign(held_.begin(), held_.begin() + count);
  auto rest = tokenizer.encode(std::string_view(text).substr(at), false);
  drawn.tokens.insert(drawn.tokens.end(), rest.begin(), rest.end());
  drawn.pieces.push_back({text.substr(at), static_cast<int>(rest.size())});
  return drawn;
}

void ChatTokens::set(ChatPrompt prompt, int num_tokens) {
  held_ = std::move(prompt.tokens);
  pieces_ = std::move(prompt.pieces);
  truncate(num_tokens);
}

void ChatTokens::append(const std::vector<int>& tokens,
                        int message,
                        const std::string& text,
                        const std::string& end_text) {
  held_.insert(held_.end(), tokens.begin(), tokens.end());
  if (message < 0) {
    return;
  }
  int num_ends = end_text.empty() ? 0 : 1;
  pieces_.push_back(
      {text, static_cast<int>(tokens.size()) - num_ends, message});
  if (num_ends > 0) {
    pieces_.push_back({end_text, 1, message});
  }
}

void ChatTokens::truncate(int num_tokens) {
  held_.resize(std::min(held_.size(), static_cast<std::size_t>(num_tokens)));
  int left = count();
  auto end = std::ranges::find_if(pieces_, [&](const ChatPiece& piece) {
    left -= piece.num_tokens;
    return left < 0;
  });
  pieces_.erase(end, pieces_.end());
}

void ChatTokens::forget_answers(int first_message) {
  auto end = std::ranges::find_if(pieces_, [&](const ChatPiece& piece) {
    return piece.message >= first_message && piece.message >= 0;
  });
  pieces_.erase(end, pieces_.end());
}

}  // namespace mlxlm
