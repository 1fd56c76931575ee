// Who proposes the tokens that a model then only checks.
#pragma once

#include <exception>
#include <memory>
#include <optional>
#include <vector>

#include <mlx/array.h>

#include <mlxlm/generate.h>

#include "generate/sampling.h"

namespace mlxlm {

struct Draft {
  mx::array tokens;  // [N] int32, N >= 1
  // Log-weights [N, V] that the tokens were drawn with, not normalized. None:
  // the tokens are not drawn, or it isn't known with which.
  std::optional<mx::array> log_weights;

  int size() const { return tokens.shape(0); }
};

// What a drafter would propose now, as a class: how many tokens of a class are
// accepted is measured, and decides on the length of the next draft.
inline constexpr int kNoOutlook = 0;  // nothing to propose
inline constexpr int kNumOutlooks = 8;

class NetworkDrafter;

// One generation's. It is told of every token of the text in order: the prompt,
// then those that the model accepted or drew itself.
class Drafter {
 public:
  virtual ~Drafter() = default;

  // Before anything else: what is known of the tokens before the text, which a
  // cache may hold.
  virtual void begin(const std::vector<int>& earlier) = 0;
  // The text begins with these, or goes on with more of the prompt.
  virtual void add_prompt(const std::vector<int>& tokens) = 0;

  // Whether it goes on from what the model leaves of the tokens it reads, and
  // is told of that: states [1, L, D] from the text's token `first` on, in
  // place of what they were said to be before.
  virtual bool wants_states() const { return false; }
  virtual void read_states(int /*first*/, const mx::array& /*states*/) {}

  // Reads of the prompt what can be read before a draft is asked for, `most`
  // tokens at most. Returns how many it read.
  virtual int read_ahead(int /*most*/) { return 0; }

  // In [0, kNumOutlooks).
  virtual int outlook() const = 0;

  // At most `count` >= 1 tokens to follow the text; none if there is nothing to
  // propose. accept() follows. `sampling` is the model's, after the text.
  virtual std::optional<Draft> propose(int count, const Sampling& sampling) = 0;

  // The text goes on with these. After propose(), they are the first
  // `num_accepted` of the draft and what came in place of the rest.
  virtual void accept(const std::vector<int>& tokens, int num_accepted) = 0;

  // Brings the cache, if there is one, up to the text but for its `num_left`
  // last tokens, while no draft waits for accept(). False: it can't, and may
  // have read less or more.
  virtual bool read_up_to(int /*num_left*/) { return true; }
  virtual PromptCache cache() const { return {}; }

  // Itself if a network makes its drafts, token by token, else null.
  virtual NetworkDrafter* network() { return nullptr; }
};

// Drafts of several texts, which networks make side by side. A fault is that of
// the rows that it concerns.
struct DraftJob {
  Drafter* drafter;
  int count;  // >= 1
  const Sampling* sampling;
};
struct Proposal {
  std::optional<Draft> draft;
  std::exception_ptr fault;
};
std::vector<Proposal> propose_all(const std::vector<DraftJob>& jobs);

// Who drafts. Throws Error{argument} where draft and draft_model don't go
// together, Error{unsupported} where the model has no head.
DraftKind draft_kind(Model& model, const GenerateOptions& options);

// What else is refused of who drafts. Throws Error{argument}, and
// Error{unsupported} for input embeddings, which n-grams alone go with.
void check_drafts(const std::vector<int>& prompt,
                  const GenerateOptions& options);

// Whether nothing was read into the cache.
bool is_fresh(const PromptCache& cache);

// Whether who drafts has caches of its own, and fresh ones.
bool drafts_with_cache(const GenerateOptions& options);
PromptCache make_draft_cache(Model& model, const GenerateOptions& options);

// usable_cache() of the model's layers and of who drafts; a caller's list with
// the model's alone gets fresh ones of the other.
PromptCache& usable_cache_with_draft(Model& model,
                                     const GenerateOptions& options,
                                     PromptCache& own);

// Such a list in two: the model's layers, then the others.
std::pair<PromptCache, PromptCache> split_layers(const Model& model,
                                                 const PromptCache& layers);

// One of those below, as draft_kind() says; n-grams where it says none.
std::unique_ptr<Drafter> make_drafter(const ModelPtr& model,
                                      PromptCache cache,
                                      const GenerateOptions& options);

// A smaller model with the same tokenizer. `cache`: one entry for each of its
// layers; `vocabulary_size`: of the large model. The options must outlive it.
std::unique_ptr<Drafter> make_model_drafter(ModelPtr model,
                                            PromptCache cache,
                                            int vocabulary_size,
                                            const GenerateOptions& options);

// The model's own head, which it has. `cache`: of the head. The options must
// outlive it.
std::unique_ptr<Drafter> make_head_drafter(ModelPtr model,
                                           PromptCache cache,
                                           const GenerateOptions& options);

// What followed the same words before.
std::unique_ptr<Drafter> make_ngram_drafter();

}  // namespace mlxlm
