// A generation's part of a prefix store: under its key, what is looked up and
// what is stored.
#pragma once

#include <span>
#include <string>
#include <vector>

#include <mlxlm/generate.h>

namespace mlxlm {

class PrefixAccess {
 public:
  // Of options with a store. `layout`: how caches differ from those that the
  // model makes with these options. Throws Error{argument} for what doesn't go
  // with a store.
  PrefixAccess(ModelPtr model,
               const GenerateOptions& options,
               const std::string& layout = "");

  PrefixMatch find(std::span<const int> tokens) const;
  // All that `cache` has read; a warning if it can't be kept.
  void put(std::span<const int> tokens, const PromptCache& cache) const;

  // Whether later states of the cache won't do for what it holds now, so that
  // it is to be stored on the way.
  bool changes_later(const PromptCache& cache) const;
  // Where, of a prompt: at messages' ends, every so many tokens, at the end.
  std::vector<int> checkpoints(int prompt_tokens) const;

  // Whether what one of the two stores is found by the other.
  bool shares_with(const PrefixAccess& other) const;

 private:
  std::shared_ptr<PrefixStore> store_;
  std::string key_;            // but for the quantization
  std::string quantized_key_;  // "": never quantized
  std::vector<int> message_ends_;
  int checkpoint_tokens_;
  int quantized_kv_start_;
};

}  // namespace mlxlm
