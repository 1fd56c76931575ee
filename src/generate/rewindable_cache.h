// A prompt cache that can go back: by trimming, else to copies that were made
// on the way.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include <mlxlm/cache.h>

namespace mlxlm {

class RewindableCache {
 public:
  RewindableCache() = default;
  explicit RewindableCache(PromptCache layers) : layers_(std::move(layers)) {}

  // The layers; whoever reads tokens into them tells the functions below how
  // many there are.
  PromptCache& layers() { return layers_; }
  const PromptCache& layers() const { return layers_; }

  // Whether some layer can't drop tokens for ever, so that marks are needed.
  bool needs_marks() const;

  // Makes here, after `num_tokens`, a point to come back to: copies of the
  // layers that need it, which share their buffers until those read on. Beyond
  // `max_bytes` of copies the oldest marks go, the first one last; this one
  // stays.
  void mark(int num_tokens, std::size_t max_bytes);

  // Goes back from `num_tokens` to `target` tokens, or as near before that as
  // it can; returns where that is. 0: the layers are gone.
  int rewind(int num_tokens, int target);

  void clear();

  // Shares all buffers, and the marks.
  RewindableCache fork() const;

  std::size_t mark_bytes() const;

 private:
  struct Mark {
    int num_tokens = 0;
    std::size_t nbytes = 0;
    PromptCache copies;  // null where trimming does; never read into
  };

  void trim_to(std::size_t layer, int num_tokens);
  void restore(const Mark& mark);

  PromptCache layers_;
  std::vector<Mark> marks_;  // in the order of their tokens
};

}  // namespace mlxlm
