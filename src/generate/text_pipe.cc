#include "generate/text_pipe.h"

namespace mlxlm {

TextPipe::TextPipe(const Tokenizer* tokenizer, const GenerateOptions& options)
    : tokens_(options.stop_sequences), texts_(options.stop_texts) {
  if (tokenizer != nullptr) {
    detokenizer_ = tokenizer->detokenizer();
  } else if (!options.stop_texts.empty()) {
    throw Error(ErrorKind::argument,
                "stop texts need a tokenizer; without one use stop sequences "
                "of token ids");
  }
}

std::string TextPipe::text_of(const std::vector<int>& tokens) {
  std::string text;
  if (detokenizer_) {
    for (int token : tokens) {
      detokenizer_->add_token(token);
      text += detokenizer_->last_segment();
    }
  }
  return text;
}

std::string TextPipe::add(int token) {
  if (stopped()) {
    return "";
  }
  return texts_.feed(text_of(tokens_.feed({token})));
}

std::string TextPipe::finish() {
  std::string text = texts_.feed(text_of(tokens_.flush()));
  if (detokenizer_ && !texts_.stopped()) {
    detokenizer_->finalize();
    text += texts_.feed(detokenizer_->last_segment());
  }
  return text + texts_.flush();
}

}  // namespace mlxlm
