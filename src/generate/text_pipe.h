// From tokens to the text that may be shown: stop sequences, detokenizer, stop
// texts.
#pragma once

#include <memory>
#include <string>

#include <mlxlm/generate.h>

#include "generate/stop_matcher.h"

namespace mlxlm {

class TextPipe {
 public:
  // Without a tokenizer there is no text. Throws Error{argument} if there are
  // stop texts nevertheless.
  TextPipe(const Tokenizer* tokenizer, const GenerateOptions& options);

  // The text that is certain after one more token: whole characters, and
  // nothing of a stop text or sequence.
  std::string add(int token);

  // The rest, at the end.
  std::string finish();

  // A stop text or sequence came; add() returns nothing more.
  bool stopped() const { return tokens_.stopped() || texts_.stopped(); }

 private:
  std::string text_of(const std::vector<int>& tokens);

  std::unique_ptr<StreamingDetokenizer> detokenizer_;
  StopMatcher<std::vector<int>> tokens_;
  StopMatcher<std::string> texts_;
};

}  // namespace mlxlm
