// A model with its cache: reads tokens, and takes the newest back.
#pragma once

#include <memory>
#include <vector>

#include <mlxlm/generate.h>

#include "generate/prefill.h"
#include "generate/return_point.h"

namespace mlxlm {

// Whatever the kinds of its caches: where some go back to a checkpoint, the
// kept tokens are read once more with the next ones.
class Reader {
 public:
  Reader(ModelPtr model, PromptCache cache, const GenerateOptions& options);
  ~Reader();
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  const PromptCache& cache() const { return cache_; }
  int vocabulary_size() const { return model_->vocabulary_size(); }

  // From now on the model's states are told of, [1, L, D] from the text's token
  // `first` on; the text begins with the prompt, which is one of tokens then.
  using TellStates = std::function<void(int first, const mx::array& states)>;
  void tell_states(TellStates tell) { tell_states_ = std::move(tell); }

  // Reads a prompt but for its last token, which stays unread. Of input
  // embeddings read_last() reads it; logits [1, V].
  void read_prompt(const Prompt& prompt,
                   const std::function<void(int done_tokens)>& progress);
  mx::array read_last(const Prompt& prompt);

  // The newest tokens of the text, which are still to be read.
  const std::vector<int>& unread() const { return unread_; }
  void add_unread(const std::vector<int>& tokens);

  // As the function of round.h.
  int readable_drafts() const;

  // Reads all that is unread; the logits of the last token, [1, V].
  mx::array read_unread();
  // Reads all that is unread and what may be taken back, [N]. The logits of the
  // last unread token and of each of the others, [N + 1, V].
  mx::array read_unread_and(const mx::array& drafts);
  // Reads one token more, [1], after begin_drafts(); logits [1, V].
  mx::array read_one(const mx::array& token);

  // What is read from here on, `count` tokens at most, may be taken back.
  void begin_drafts(int count);
  // Of all that was read since then, the first `num_kept` tokens stay.
  void keep(const std::vector<int>& read, int num_kept);

 private:
  mx::array pass(const mx::array& tokens);
  mx::array forward(const mx::array& tokens, int count);

  ModelPtr model_;
  PromptCache cache_;
  const GenerateOptions& options_;
  TellStates tell_states_;
  int num_read_ = 0;  // of the text
  std::vector<int> unread_;
  ReturnPoint point_;
};

}  // namespace mlxlm
