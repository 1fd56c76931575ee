// One request on its way from the queue to its end.
//
// Invariant: the cache has read the first num_read tokens of `to_read`, and,
// once all are read, every token given out but those that `drafts` has unread.
#pragma once

#include <algorithm>
#include <climits>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <mlxlm/batch.h>

#include "batch/pass_estimate.h"
#include "batch/row_drafts.h"
#include "generate/answer.h"
#include "generate/memory_estimate.h"
#include "generate/options.h"
#include "generate/prefill.h"
#include "generate/prefix_access.h"
#include "generate/sampling.h"

namespace mlxlm {

// Where reading stops, and of which segment.
struct SegmentEnd {
  int segment;
  int position;
};

// Makes one prompt of the segments, with a checkpoint where each ends. Throws
// Error{argument}.
std::vector<SegmentEnd> join_segments(BatchRequest& request);

// Of who drafts with a cache, for all rows that store it alike.
struct DraftEstimates {
  ModelPtr model;
  std::uint64_t weight_bytes;  // 0: counted with the model's
  CacheEstimate cache;
  PassEstimate pass;
};

struct Row {
  Row(RowId id,
      BatchRequest the_request,
      std::vector<SegmentEnd> the_segment_ends,
      const ModelPtr& the_model,
      const Tokenizer* tokenizer)
      : id(id),
        request(std::move(the_request)),
        segment_ends(std::move(the_segment_ends)),
        to_read{request.prompt,
                request.options.input_embeddings,
                prompt_length(request.prompt, request.options)},
        model(the_model),
        cache(&usable_cache_with_draft(*model, request.options, own_cache)),
        first_offset(prompt_cache_offset(*cache)),
        sampling(request.options),
        answer(*model, tokenizer, request.options, to_read.length),
        depends_on_chunks(model->depends_on_chunks() ||
                          options().max_kv_size > 0 ||
                          kv_quantization(options())) {
    if (draft_kind(*model, options()) != DraftKind::none) {
      const PromptCache all = *cache;
      if (drafts_with_cache(options())) cache = &own_cache;
      drafts = std::make_unique<RowDrafts>(model, *cache, options());
      set_layers(all);
      first_offset = prompt_cache_offset(*cache);
    }
    if (options().prefix_store) prefixes.emplace(model, options());
  }
  // A caller's list gets the layers that quantization replaced.
  ~Row() {
    PromptCache* given = options().prompt_cache;
    if (given != nullptr && given != cache) *given = layers();
  }
  Row(const Row&) = delete;
  Row& operator=(const Row&) = delete;

  const GenerateOptions& options() const { return request.options; }
  bool reading() const { return num_read < to_read.length; }
  int num_left() const { return to_read.length - num_read; }
  // Tokens that the cache holds when the next pass is done.
  int num_tokens() const {
    return first_offset + num_read + static_cast<int>(given.size()) -
           num_given_before + most_drafts();
  }
  // Those that came with the cache aside.
  std::vector<int> read_tokens() const {
    std::vector<int> tokens = to_read.tokens;
    tokens.resize(std::min(tokens.size(), static_cast<std::size_t>(num_read)));
    tokens.insert(tokens.end(),
                  given.begin() + num_given_before,
                  given.end() - (drafts ? drafts->num_unread() : 0));
    return tokens;
  }
  int tokens_left() const {
    const int most = options().max_tokens;
    return most < 0 ? INT_MAX : most - static_cast<int>(given.size());
  }
  // Of the model and, behind them, of who drafts with a cache: as a caller's
  // list and prefix stores have them.
  PromptCache layers() const {
    PromptCache all = *cache;
    if (drafts)
      std::ranges::copy(drafts->draft_cache(), std::back_inserter(all));
    return all;
  }
  void set_layers(const PromptCache& all) {
    auto [own, of_drafts] = split_layers(*model, all);
    *cache = std::move(own);
    if (drafts) drafts->start(std::move(of_drafts));
  }
  int most_drafts() const {
    constexpr int kMost = 1 << 16;  // so that sums stay numbers
    if (!drafts) return 0;
    const int count =
        options().num_draft_tokens.value_or(DraftLength::kMaxDrafts);
    return std::min({count, std::max(tokens_left(), 0), kMost});
  }
  // Whether it can start again from its tokens alone.
  bool preemptable() const {
    return first_offset == 0 && !options().input_embeddings &&
           !depends_on_chunks;
  }

  // The segment that ends with what is read now, if it wasn't told of.
  std::optional<int> segment_read() {
    while (next_segment < segment_ends.size() &&
           segment_ends[next_segment].position < num_read) {
      ++next_segment;
    }
    if (next_segment == segment_ends.size() || !reading() ||
        segment_ends[next_segment].position != num_read) {
      return std::nullopt;
    }
    return segment_ends[next_segment++].segment;
  }

  RowId id;
  BatchRequest request;
  std::vector<SegmentEnd> segment_ends;
  std::size_t next_segment = 0;  // of those that weren't read yet
  Prompt to_read;  // before the first draw, or the first after a preemption
  int num_read = 0;
  ModelPtr model;
  PromptCache own_cache;
  PromptCache* cache;  // the model's
  int first_offset;    // tokens that came with the cache
  Sampling sampling;
  Answer answer;
  // Whether what the cache holds depends on how its tokens were cut into
  // chunks: rotating caches that keep their first tokens, quantization, which
  // begins at the end of a chunk, and some models.
  bool depends_on_chunks;
  // Admission's, of its cache and of passes over it.
  const CacheEstimate* cache_estimate = nullptr;
  PassEstimate* pass_estimate = nullptr;
  std::shared_ptr<DraftEstimates> draft_estimates;  // null: without a cache
  bool begun = false;
  bool failed = false;
  std::optional<PrefixAccess> prefixes;  // none: no store
  std::unique_ptr<RowDrafts> drafts;     // null: none are made
  std::optional<Sampled> drawn;  // by the pass under way, not yet given out
  // Where that was one operation for several rows: the tokens of all, and which
  // of them it is.
  std::optional<mx::array> drawn_with;
  int drawn_at = 0;
  std::vector<int> given;    // tokens given out
  int num_given_before = 0;  // of them, those in to_read
  // What memory is reserved for, and what it would need alone at its end.
  std::int64_t reserved_tokens = 0;
  std::uint64_t alone_bytes = 0;
};

}  // namespace mlxlm
