#include "generate/drafter.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "generate/options.h"

namespace mlxlm {

DraftKind draft_kind(Model& model, const GenerateOptions& options) {
  if (options.draft_model) {
    if (options.draft == DraftKind::ngram || options.draft == DraftKind::mtp) {
      throw Error(ErrorKind::argument,
                  std::string("draft is ") +
                      (options.draft == DraftKind::mtp ? "mtp" : "ngram") +
                      ", but there is a draft_model: leave one out");
    }
    return DraftKind::model;
  }
  if (options.draft == DraftKind::model) {
    throw Error(ErrorKind::argument, "draft is model, but draft_model is null");
  }
  if (options.draft == DraftKind::mtp && model.draft_head() == nullptr) {
    std::string message =
        "draft is mtp, but the model has no draft head: it is of type " +
        model.model_type() +
        ", or was loaded without LoadOptions::draft_head; types that may have "
        "one are";
    for (const auto& name : model_types_with_draft_head())
      message += " " + name;
    throw Error(ErrorKind::unsupported, message);
  }
  return options.draft;
}

void check_drafts(const std::vector<int>& prompt,
                  const GenerateOptions& options) {
  if (options.draft_model) {
    check_options(prompt, *options.draft_model, options);
  }
  if (options.input_embeddings && drafts_with_cache(options)) {
    throw Error(ErrorKind::unsupported,
                "a draft model or head can't read input embeddings; --draft "
                "ngram works with them");
  }
  check_at_least("num_draft_tokens", options.num_draft_tokens.value_or(1), 1);
}

PromptCache make_draft_cache(Model& model, const GenerateOptions& options) {
  switch (draft_kind(model, options)) {
    case DraftKind::model:
      return options.draft_model->make_cache(options.max_kv_size);
    case DraftKind::mtp:
      return model.draft_head()->make_cache(options.max_kv_size);
    default:
      return {};
  }
}

bool is_fresh(const PromptCache& cache) {
  return std::ranges::all_of(
      cache, [](const CachePtr& layer) { return layer->empty(); });
}

bool drafts_with_cache(const GenerateOptions& options) {
  return options.draft_model || options.draft == DraftKind::mtp;
}

PromptCache& usable_cache_with_draft(Model& model,
                                     const GenerateOptions& options,
                                     PromptCache& own) {
  PromptCache fresh = model.make_cache(options.max_kv_size);
  PromptCache draft = make_draft_cache(model, options);
  PromptCache* given = options.prompt_cache;
  if (given != nullptr && given->size() == fresh.size()) {
    std::ranges::copy(draft, std::back_inserter(*given));
  }
  std::ranges::copy(draft, std::back_inserter(fresh));
  return usable_cache(std::move(fresh), options, own);
}

std::pair<PromptCache, PromptCache> split_layers(const Model& model,
                                                 const PromptCache& layers) {
  const auto end =
      layers.begin() + static_cast<std::ptrdiff_t>(model.make_cache().size());
  return {{layers.begin(), end}, {end, layers.end()}};
}

std::unique_ptr<Drafter> make_drafter(const ModelPtr& model,
                                      PromptCache cache,
                                      const GenerateOptions& options) {
  switch (draft_kind(*model, options)) {
    case DraftKind::model:
      return make_model_drafter(options.draft_model,
                                std::move(cache),
                                model->vocabulary_size(),
                                options);
    case DraftKind::mtp:
      return make_head_drafter(model, std::move(cache), options);
    default:
      return make_ngram_drafter();
  }
}

}  // namespace mlxlm
