#include "generate/prefix_access.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "core/log.h"
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

PrefixAccess::PrefixAccess(ModelPtr model,
                           const GenerateOptions& options,
                           const std::string& layout)
    : store_(options.prefix_store),
      message_ends_(options.prompt_checkpoints),
      checkpoint_tokens_(options.checkpoint_tokens),
      quantized_kv_start_(options.quantized_kv_start) {
  if (options.prompt_cache != nullptr) {
    refuse("a prompt cache: its tokens aren't known; leave one of them out");
  }
  if (options.input_embeddings) {
    refuse("input embeddings, which can't be compared");
  }
  const bool lasting = store_->spills();
  auto add = [&](const std::string& part) {
    key_ += std::to_string(part.size()) + ":" + part;
  };
  add(options.prefix_tenant);
  add(identity_of(model, lasting));
  add(identity_of(options.draft_model, lasting));
  add(options.draft == DraftKind::mtp ? "mtp" : "");
  add(std::to_string(options.max_kv_size));
  add(layout);
  // Quantized caches have a key of their own: the same beginning may have been
  // read plainly before quantization began.
  if (auto q = kv_quantization(options)) {
    add(std::to_string(q->key_bits) + "," + std::to_string(q->value_bits) +
        "," + std::to_string(q->group_size) + "," +
        std::to_string(options.quantized_kv_start));
    quantized_key_ = key_ + "quantized";
  }
}

PrefixMatch PrefixAccess::find(std::span<const int> tokens) const {
  if (!quantized_key_.empty()) {
    auto match = store_->find(quantized_key_, tokens);
    if (match.reused_tokens >= std::max(1, quantized_kv_start_)) {
      return match;
    }
  }
  return store_->find(key_, tokens);
}

void PrefixAccess::put(std::span<const int> tokens,
                       const PromptCache& cache) const {
  try {
    store_->put(is_quantized(cache) ? quantized_key_ : key_, tokens, cache);
  } catch (const std::exception& error) {
    log_warning("the prefix store can't keep this prompt: " +
                std::string(error.what()));
  }
}

bool PrefixAccess::changes_later(const PromptCache& cache) const {
  if (!quantized_key_.empty() && !is_quantized(cache)) {
    return true;
  }
  return std::ranges::any_of(cache, [](const CachePtr& layer) {
    return !layer->capabilities().always_trimmable;
  });
}

std::vector<int> PrefixAccess::checkpoints(int prompt_tokens) const {
  std::vector<int> positions = message_ends_;
  const int every = checkpoint_tokens_;
  for (int at = every; every > 0 && at < prompt_tokens; at += every) {
    positions.push_back(at);
  }
  positions.push_back(prompt_tokens - 1);
  return positions;
}

bool PrefixAccess::shares_with(const PrefixAccess& other) const {
  return store_ == other.store_ && key_ == other.key_;
}

}  // namespace mlxlm
