#include "cli/speculation_options.h"

#include "cli/command.h"
#include "cli/console.h"
#include "cli/model_options.h"
#include "cli/several_ranks.h"

namespace mlxlm::cli {

void SpeculationOptions::add_to(CLI::App& command) {
  constexpr char kGroup[] = "Speculative decoding";
  command
      .add_option("--draft",
                  draft_,
                  "Who proposes tokens that the model only checks:\n"
                  "ngram (what followed the same words before), mtp\n"
                  "(the model's own head for further tokens) or model\n"
                  "(if there is a --draft-model)")
      ->type_name("KIND")
      ->group(kGroup);
  command
      .add_option("--draft-model",
                  draft_model_,
                  "Smaller model with the same tokenizer that\n"
                  "proposes tokens")
      ->type_name("MODEL")
      ->group(kGroup);
  command
      .add_option("--num-draft-tokens",
                  num_draft_tokens_,
                  "Tokens proposed at a time; if not given, as many\n"
                  "as are measured to pay")
      ->type_name("N")
      ->group(kGroup);
}

DraftKind SpeculationOptions::kind() const {
  if (draft_ == "ngram") {
    return DraftKind::ngram;
  }
  if (draft_ == "mtp") {
    return DraftKind::mtp;
  }
  return draft_.empty() && draft_model_.empty() ? DraftKind::none
                                                : DraftKind::model;
}

void SpeculationOptions::check() const {
  if (kind() != DraftKind::none) {
    require_one_rank("--draft",
                     "each would measure other times and draft other tokens");
  }
  if (!draft_.empty() && draft_ != "ngram" && draft_ != "mtp" &&
      draft_ != "model") {
    throw UsageError("--draft is ngram, mtp or model, not " + draft_);
  }
  if (draft_ == "model" && draft_model_.empty()) {
    throw UsageError("--draft model needs a --draft-model");
  }
  if (!draft_.empty() && draft_ != "model" && !draft_model_.empty()) {
    throw UsageError("--draft " + draft_ + " has no use for a --draft-model");
  }
}

void SpeculationOptions::apply_to(GenerateOptions& options,
                                  const LoadedModel& loaded) const {
  options.draft = kind();
  options.num_draft_tokens = num_draft_tokens_;
  if (options.draft != DraftKind::model) {
    return;
  }
  LoadOptions load_options;
  load_options.progress = progress_on_terminal();
  options.draft_model = load_model(draft_model_, load_options);
  clear_progress();
  if (loaded.tokenizer != nullptr) {
    check_draft_tokenizer(*loaded.tokenizer, *load_tokenizer(draft_model_));
    return;
  }
  const int size = loaded.model->vocabulary_size();
  const int draft_size = options.draft_model->vocabulary_size();
  if (size != draft_size) {
    throw Error(ErrorKind::argument,
                "--draft-model has a vocabulary of " +
                    std::to_string(draft_size) + " tokens, the model one of " +
                    std::to_string(size) + ": they must be the same");
  }
}

}  // namespace mlxlm::cli
