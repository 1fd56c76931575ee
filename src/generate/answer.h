// What a generation gives out: text, statistics, and why it ends.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include <mlxlm/generate.h>

#include "generate/text_pipe.h"

namespace mlxlm {

class Answer {
 public:
  // The tokenizer may be null. Throws Error{argument} as TextPipe.
  Answer(const Model& model,
         const Tokenizer* tokenizer,
         const GenerateOptions& options,
         int prompt_tokens);

  // Of the prompt this many tokens need not be read, and why not more.
  void reuse(int num_tokens, const std::string& reason);

  // The prompt begins to be read; the clock runs.
  void begin();
  // The part for one more token; with a finish reason if it is the last.
  GenerationResponse add(StepResult step);
  // The last part, with no token of its own but the text that was held back.
  GenerationResponse end(const std::string& reason);

  bool ended() const { return ended_; }

 private:
  void take(StepResult step);
  void measure();
  GenerationResponse finish(const std::string& reason);

  std::vector<int> end_tokens_;
  int max_tokens_;
  TextPipe text_;
  GenerationResponse part_;
  std::chrono::steady_clock::time_point start_;
  bool ended_ = false;
};

}  // namespace mlxlm
