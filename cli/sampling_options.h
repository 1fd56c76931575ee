// How tokens are chosen: sampler and penalties.
#pragma once

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include <mlxlm/sample.h>
#include <mlxlm/tokenizer.h>

namespace mlxlm::cli {

class SamplingOptions {
 public:
  void add_to(CLI::App& command);

  bool has_seed() const { return !seed_.empty(); }

  // Seeds the generator if a seed was given. Throws UsageError.
  void apply_seed() const;

  // XTC never removes line ends and end-of-sequence tokens; `tokenizer` may be
  // null.
  Sampler sampler(const Tokenizer* tokenizer) const;
  std::vector<LogitsProcessor> processors() const;
  // What these two are made from.
  SamplerOptions sampler_options(const Tokenizer* tokenizer) const;
  PenaltyOptions penalty_options() const;

 private:
  SamplerOptions sampler_;
  PenaltyOptions penalties_;
  std::vector<std::string> biases_;
  std::string seed_;
};

}  // namespace mlxlm::cli
