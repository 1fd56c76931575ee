// A model with its cache: reads tokens, and takes the newest back.
#pragma once

#include <memory>
#include <vector>

#include <mlxlm/generate.h>

#include "generate/prefill.h"

namespace mlxlm {

// Whatever the kinds of its caches: layers that can't be trimmed (rotating past
// their size, recurrent) go back to a checkpoint, and what they had read of the
// kept tokens is read once more with the next ones.
class Reader {
 public:
  Reader(ModelPtr model, PromptCache cache, const GenerateOptions& options);
  ~Reader();
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  const PromptCache& cache() const { return cache_; }
  int vocabulary_size() const { return model_->vocabulary_size(); }

  // Reads a prompt but for its last token, which stays unread. Of input
  // embeddings read_last() reads it; logits [1, V].
  void read_prompt(const Prompt& prompt,
                   const std::function<void(int done_tokens)>& progress);
  mx::array read_last(const Prompt& prompt);

  // The newest tokens of the text, which are still to be read.
  const std::vector<int>& unread() const { return unread_; }
  void add_unread(const std::vector<int>& tokens);

  // How many tokens after the unread ones can be read at once and mean the same
  // as one by one: quantization that begins at some length is the limit.
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
  mx::array forward(const mx::array& tokens, int count);

  ModelPtr model_;
  PromptCache cache_;
  const GenerateOptions& options_;
  std::vector<int> unread_;
  // One per layer with the layer, which quantization may replace meanwhile;
  // null where trimming does. Empty if it does everywhere.
  struct Point {
    CachePtr layer;
    std::unique_ptr<CacheCheckpoint> checkpoint;
  };
  std::vector<Point> points_;
};

}  // namespace mlxlm
