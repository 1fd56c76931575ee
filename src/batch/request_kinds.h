// Requests of many kinds on a small model, with the tokens of their single
// runs, for tests of random schedules.
#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include <mlxlm/batch.h>

#include "cache/settle.h"
#include "generate/toy.h"

namespace mlxlm {

struct RequestKind {
  std::vector<int> prompt;
  GenerateOptions options;
  std::vector<int> alone;  // the tokens of its single run
  bool continues = false;  // the shared cache
  bool shares = false;     // a prefix store, if there is one
  DraftKind draft = DraftKind::none;
  int seed = -1;  // of a random sampler
};

// A request with a cache of its own.
struct OpenRequest {
  BatchRequest request;
  std::unique_ptr<PromptCache> cache;
};

class RequestKinds {
 public:
  static constexpr int kCount = 48;

  explicit RequestKinds(const ToyOptions& toy)
      : model_(std::make_shared<ToyModel>(with_head(toy))),
        draft_(std::make_shared<ToyModel>(near(toy))) {
    auto shared = stream_generate(
        model_,
        nullptr,
        bytes_of("A beginning that several rows have in common. "),
        {.max_tokens = 1, .prompt_cache = &shared_});
    while (shared.next()) {
    }
    settle(shared_);  // threads copy it
    for (int i = 0; i < kCount; ++i) kinds_.push_back(kind(i));
  }

  const ModelPtr& model() const { return model_; }
  const RequestKind& operator[](int i) const {
    return kinds_[static_cast<std::size_t>(i)];
  }

  OpenRequest open(const RequestKind& kind,
                   std::shared_ptr<PrefixStore> store) const {
    OpenRequest open{{kind.prompt, kind.options}, nullptr};
    auto& options = open.request.options;
    options.cancel = {};
    if (kind.seed >= 0) {
      options.sampler = with_seed(make_sampler({.temperature = 0.8}),
                                  static_cast<std::uint64_t>(kind.seed));
    }
    if (kind.continues) {
      open.cache = std::make_unique<PromptCache>(fork_prompt_cache(shared_));
      options.prompt_cache = open.cache.get();
    }
    if (kind.shares) options.prefix_store = std::move(store);
    options.draft = kind.draft;
    if (kind.draft == DraftKind::model) options.draft_model = draft_;
    options.num_draft_tokens = 3;
    return open;
  }

 private:
  // Heads and models that are often right.
  static ToyOptions with_head(ToyOptions toy) {
    toy.head_noise = 0.03f;
    return toy;
  }
  static ToyOptions near(ToyOptions toy) {
    toy.noise = 0.03f;
    return toy;
  }

  int number(int most) { return static_cast<int>(random_() % most); }

  // Most are short; one has 3,000 tokens.
  RequestKind kind(int i) {
    RequestKind kind;
    auto& options = kind.options;
    options.max_tokens = 1 + number(i % 6 == 0 || i % 8 == 3 ? 60 : 12);
    switch (i % 5) {
      case 1:
        options.max_kv_size = 8 + number(40);
        break;
      case 2:
        options.kv_bits = i % 2 == 0 ? 8 : 4;
        options.kv_group_size = 32;
        options.quantized_kv_start = number(30);
        break;
      case 3:
        kind.shares = true;
        kind.prompt = bytes_of("Prompts with this beginning share it. ");
        kind.prompt.resize(kind.prompt.size() - number(8));
        break;
      case 4:
        kind.continues = true;
        break;
    }
    if (i % 7 == 3) options.prefill_step_tokens = 1 + number(20);
    if (i % 7 == 5) {
      options.logits_processors =
          make_logits_processors({.repetition_penalty = 1.2});
    }
    if (i % 6 == 5) kind.seed = i;
    const DraftKind drafts[] = {
        DraftKind::ngram, DraftKind::model, DraftKind::mtp};
    if (i % 4 == 2) kind.draft = drafts[i / 4 % 3];
    const int length = i == 0       ? 3000
                       : i % 8 == 0 ? 1 + number(200)
                       : i % 8 == 3 ? 230 + number(25)  // soon a step more
                                    : 1 + number(12);
    for (int n = 0; n < length; ++n) {
      // Drafts find repetitions.
      kind.prompt.push_back(kind.draft != DraftKind::none ? 97 + n % 5
                                                          : number(256));
    }
    auto plain = kind;
    plain.draft = DraftKind::none;
    auto [request, cache] = open(plain, nullptr);
    auto alone =
        stream_generate(model_, nullptr, request.prompt, request.options);
    while (auto part = alone.next()) kind.alone.push_back(part->token);
    return kind;
  }

  std::mt19937 random_{1};
  ModelPtr model_;
  ModelPtr draft_;
  PromptCache shared_;
  std::vector<RequestKind> kinds_;
};

// The models: every kind of cache.
inline std::vector<ToyOptions> toys_of_schedules() {
  return {{.context_tokens = 8192},
          {.window_tokens = 12, .context_tokens = 8192},
          {.recurrent = true, .context_tokens = 8192},
          {.chunk_tokens = 16, .context_tokens = 8192}};
}

}  // namespace mlxlm
