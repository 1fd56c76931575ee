// --draft and the options that go with it.
#pragma once

#include <optional>
#include <string>

#include <CLI/CLI.hpp>

#include <mlxlm/generate.h>

namespace mlxlm::cli {

class SpeculationOptions {
 public:
  void add_to(CLI::App& command);

  // Throws UsageError for options that don't fit together.
  void check() const;

  DraftKind kind() const;

  // Whether the model is to be loaded with its draft head.
  bool needs_draft_head() const { return kind() == DraftKind::mtp; }

  // Loads the draft model, if there is one. Throws Error{argument} if its
  // tokens aren't the model's.
  void apply_to(GenerateOptions& options, const LoadedModel& loaded) const;

 private:
  std::string draft_;
  std::string draft_model_;
  std::optional<int> num_draft_tokens_;
};

}  // namespace mlxlm::cli
