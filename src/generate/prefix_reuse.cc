#include "generate/prefix_reuse.h"

#include <algorithm>
#include <span>

#include "generate/drafter.h"
#include "generate/options.h"

namespace mlxlm {

PrefixReuse::PrefixReuse(ModelPtr model,
                         const std::vector<int>& prompt,
                         const GenerateOptions& options)
    : options_(options),
      tokens_(prompt),
      prompt_tokens_(prompt_length(prompt, options)) {
  if (!options_.prefix_store) {
    return;
  }
  access_.emplace(model, options_);
  check_options(prompt, *model, options_);
  checkpoints_ = access_->checkpoints(prompt_tokens_);
  match_ = access_->find(tokens_);
  read_tokens_ = match_.reused_tokens;
}

std::vector<int> PrefixReuse::rest() const {
  return {tokens_.begin() + match_.reused_tokens, tokens_.end()};
}

GenerateOptions PrefixReuse::options_for_rest() {
  GenerateOptions options = options_;
  if (!access_) {
    return options;
  }
  options.prefix_store.reset();
  options.prompt_cache = &match_.cache;
  options.earlier_tokens.assign(tokens_.begin(),
                                tokens_.begin() + match_.reused_tokens);
  options.prompt_checkpoints = checkpoints_;
  for (int& position : options.prompt_checkpoints) {
    position -= match_.reused_tokens;
  }
  options.prompt_progress = [this](int done, int total) {
    report(done, total);
  };
  return options;
}

void PrefixReuse::report(int done_tokens, int total_tokens) {
  // At the end the first token of the answer may have been read, too.
  if (done_tokens < total_tokens) {
    const int position = match_.reused_tokens + done_tokens;
    read_tokens_ = position;
    if (done_tokens > 0 && !drafts_with_cache(options_) &&
        std::ranges::count(checkpoints_, position) > 0 &&
        access_->changes_later(match_.cache)) {
      put(position);
    }
  }
  if (options_.prompt_progress) {
    options_.prompt_progress(match_.reused_tokens + done_tokens,
                             prompt_tokens_);
  }
}

void PrefixReuse::add(int token) {
  if (access_) {
    tokens_.push_back(token);
    read_tokens_ = static_cast<int>(tokens_.size());
  }
}

void PrefixReuse::put(int num_tokens) {
  access_->put(std::span(tokens_).first(static_cast<std::size_t>(num_tokens)),
               match_.cache);
}

void PrefixReuse::keep() {
  // Of a prompt that was not read to its end, the layers of who drafts may be
  // further on.
  if (access_ &&
      !(drafts_with_cache(options_) && read_tokens_ < prompt_tokens_)) {
    put(read_tokens_);
  }
}

}  // namespace mlxlm
