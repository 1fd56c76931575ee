// Which model to load: options shared by the commands.
#pragma once

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include <mlxlm/generate.h>

namespace mlxlm::cli {

// The model when none is named; the launcher fetches it.
inline constexpr char kDefaultModel[] = "smollm2-135m-instruct";

struct ModelOptions {
  std::string model;  // empty: kDefaultModel
  std::string adapter_path;
  std::vector<std::string> extra_eos_tokens;
  std::string cpu_mode;  // empty: the default
  bool trust_remote_code = false;
  bool quantize_activations = false;
  bool draft_head = false;  // LoadOptions::draft_head

  void add_to(CLI::App& command);

  std::string name() const { return model.empty() ? kDefaultModel : model; }
  LoadOptions load_options() const;

  // Speaks of options without a meaning here, refuses what isn't implemented.
  void check() const;

  // Model and tokenizer.
  LoadedModel load() const;

  // The same, but without a tokenizer (null) if the model has no usable one.
  LoadedModel load_tokenizer_optional() const;

  // The same with weights that are read only when used.
  LoadedModel load_lazily() const;

  void add_eos_tokens(Tokenizer& tokenizer) const;

 private:
  LoadedModel load_with(const LoadOptions& options) const;
};

// "name: 3 of 7" on a terminal while something is loaded.
ProgressHandler progress_on_terminal();

}  // namespace mlxlm::cli
