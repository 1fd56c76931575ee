// stream_generate() with a prefix store: what is looked up before, and stored
// on the way and afterwards.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "generate/prefix_access.h"

namespace mlxlm {

class PrefixReuse {
 public:
  // Looks the prompt up, if there is a store. Throws Error{argument} for
  // options that don't go with one.
  PrefixReuse(ModelPtr model,
              const std::vector<int>& prompt,
              const GenerateOptions& options);
  PrefixReuse(const PrefixReuse&) = delete;
  PrefixReuse& operator=(const PrefixReuse&) = delete;

  int reused_tokens() const { return match_.reused_tokens; }
  const std::string& reason() const { return match_.reason; }

  // What is left to be read, and the options for that. This object must outlive
  // the generation.
  std::vector<int> rest() const;
  GenerateOptions options_for_rest();

  // Of the answer, a token that the caches read.
  void add(int token);
  // Stores what was read. The generation must have ended.
  void keep();

 private:
  void report(int done_tokens, int total_tokens);
  void put(int num_tokens);

  GenerateOptions options_;
  std::optional<PrefixAccess> access_;
  std::vector<int> tokens_;  // the prompt and the answer
  std::vector<int> checkpoints_;
  int prompt_tokens_ = 0;
  int read_tokens_ = 0;
  PrefixMatch match_;
};

}  // namespace mlxlm
