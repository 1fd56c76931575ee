#include "generate/prefix_reuse.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "core/log.h"
#include "generate/drafter.h"
#include "generate/options.h"

namespace mlxlm {
namespace {

// A name for the model: while it lives, or, for files, whatever the process.
std::string identity_of(const ModelPtr& model, bool lasting) {
  static std::mutex mutex;
  static std::map<std::weak_ptr<Model>, std::string, std::owner_less<>>
      known[2];
  static int num_known = 0;
  if (!model) {
    return "";
  }
  std::lock_guard lock(mutex);
  auto& names = known[lasting ? 1 : 0];
  std::erase_if(names, [](const auto& entry) { return entry.first.expired(); });
  std::string& name = names[model];
  if (name.empty() && lasting) {
    CacheOrigin origin = cache_origin(*model, nullptr);
    name = origin.model_type + origin.config_hash + origin.weights_hash;
  } else if (name.empty()) {
    name = std::to_string(++num_known);
  }
  return name;
}

bool is_quantized(const PromptCache& cache) {
  return std::ranges::any_of(cache, [](const CachePtr& layer) {
    return layer->capabilities().quantization.has_value();
  });
}

void refuse(const std::string& what) {
  throw Error(ErrorKind::argument, "a prefix store doesn't go with " + what);
}

}  // namespace

PrefixReuse::PrefixReuse(ModelPtr model,
                         const std::vector<int>& prompt,
                         const GenerateOptions& options)
    : model_(std::move(model)),
      options_(options),
      tokens_(prompt),
      prompt_tokens_(prompt_length(prompt, options)) {
  if (!options_.prefix_store) {
    return;
  }
  if (options_.prompt_cache != nullptr) {
    refuse("a prompt cache: its tokens aren't known; leave one of them out");
  }
  if (options_.input_embeddings) {
    refuse("input embeddings, which can't be compared");
  }
  GenerateOptions others = options_;
  others.prefix_store.reset();
  check_options(prompt, *model_, others);
  find();
  read_tokens_ = match_.reused_tokens;
}

// Quantized caches have a key of their own: the same beginning may have been
// read plainly before quantization began.
std::string PrefixReuse::key(bool quantized) const {
  const bool lasting = options_.prefix_store->spills();
  std::string key;
  auto add = [&](const std::string& part) {
    key += std::to_string(part.size()) + ":" + part;
  };
  add(options_.prefix_tenant);
  add(identity_of(model_, lasting));
  add(identity_of(options_.draft_model, lasting));
  add(options_.draft == DraftKind::mtp ? "mtp" : "");
  add(std::to_string(options_.max_kv_size));
  if (auto q = kv_quantization(options_)) {
    add(std::to_string(q->key_bits) + "," + std::to_string(q->value_bits) +
        "," + std::to_string(q->group_size) + "," +
        std::to_string(options_.quantized_kv_start) +
        (quantized ? ",quantized" : ""));
  }
  return key;
}

void PrefixReuse::find() {
  PrefixStore& store = *options_.prefix_store;
  if (kv_quantization(options_)) {
    match_ = store.find(key(/*quantized=*/true), tokens_);
    if (match_.reused_tokens >= std::max(1, options_.quantized_kv_start)) {
      return;
    }
  }
  match_ = store.find(key(/*quantized=*/false), tokens_);
}

std::vector<int> PrefixReuse::rest() const {
  return {tokens_.begin() + match_.reused_tokens, tokens_.end()};
}

GenerateOptions PrefixReuse::options_for_rest() {
  GenerateOptions options = options_;
  if (!options_.prefix_store) {
    return options;
  }
  options.prefix_store.reset();
  options.prompt_cache = &match_.cache;
  options.earlier_tokens.assign(tokens_.begin(),
                                tokens_.begin() + match_.reused_tokens);
  const int every = options_.checkpoint_tokens;
  for (int at = every; every > 0 && at < prompt_tokens_; at += every) {
    options.prompt_checkpoints.push_back(at);
  }
  for (int& position : options.prompt_checkpoints) {
    position -= match_.reused_tokens;
  }
  options.prompt_progress = [this](int done, int total) {
    report(done, total);
  };
  return options;
}

bool PrefixReuse::is_checkpoint(int position) const {
  const int every = options_.checkpoint_tokens;
  return position == prompt_tokens_ - 1 ||
         (every > 0 && position % every == 0) ||
         std::ranges::count(options_.prompt_checkpoints, position) > 0;
}

// Whether the end of the answer won't do for what was read before.
bool PrefixReuse::changes_later(const PromptCache& cache) const {
  if (kv_quantization(options_) && !is_quantized(cache)) {
    return true;
  }
  return std::ranges::any_of(cache, [](const CachePtr& layer) {
    return !layer->capabilities().always_trimmable;
  });
}

void PrefixReuse::report(int done_tokens, int total_tokens) {
  // At the end the first token of the answer may have been read, too.
  if (done_tokens < total_tokens) {
    const int position = match_.reused_tokens + done_tokens;
    read_tokens_ = position;
    if (done_tokens > 0 && !drafts_with_cache(options_) &&
        is_checkpoint(position) && changes_later(match_.cache)) {
      put(position);
    }
  }
  if (options_.prompt_progress) {
    options_.prompt_progress(match_.reused_tokens + done_tokens,
                             prompt_tokens_);
  }
}

void PrefixReuse::add(int token) {
  if (options_.prefix_store) {
    tokens_.push_back(token);
    read_tokens_ = static_cast<int>(tokens_.size());
  }
}

void PrefixReuse::put(int num_tokens) {
  const PromptCache& cache = match_.cache;
  options_.prefix_store->put(
      key(is_quantized(cache)),
      std::span(tokens_).first(static_cast<std::size_t>(num_tokens)),
      cache);
}

void PrefixReuse::keep() {
  if (!options_.prefix_store) {
    return;
  }
  // Of a prompt that was not read to its end, the layers of who drafts may be
  // further on.
  if (drafts_with_cache(options_) && read_tokens_ < prompt_tokens_) {
    return;
  }
  try {
    put(read_tokens_);
  } catch (const std::exception& error) {
    log_warning("the prefix store can't keep this prompt: " +
                std::string(error.what()));
  }
}

}  // namespace mlxlm
