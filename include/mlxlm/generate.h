// Generation: token by token, as text, with statistics.
//
//   auto [model, tokenizer] = mlxlm::load("path/to/model");
//   for (const auto& part :
//        mlxlm::stream_generate(model, tokenizer, "Once upon a time")) {
//     std::cout << part.text << std::flush;
//   }
//
// Method: mlx_lm/generate.py (generate_step, stream_generate,
// speculative_generate_step, generate, wired_limit).
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <mlxlm/cache.h>
#include <mlxlm/error.h>
#include <mlxlm/model.h>
#include <mlxlm/sample.h>
#include <mlxlm/tokenizer.h>

namespace mlxlm {

// Ends running generations from any thread: within one prefill chunk or one
// decode step. Copies share the flag.
class CancelToken {
 public:
  void cancel() { flag_->store(true, std::memory_order_relaxed); }
  bool cancelled() const { return flag_->load(std::memory_order_relaxed); }

 private:
  std::shared_ptr<std::atomic<bool>> flag_ =
      std::make_shared<std::atomic<bool>>(false);
};

// Speculative decoding: who proposes tokens that the model only checks. The
// answer is that of plain decoding: the same tokens, or above temperature 0 of
// the same distribution.
enum class DraftKind {
  none,
  model,  // a smaller model with the same tokenizer
  ngram,  // what followed the same tokens before: no weights, for any model
  mtp,    // the model's own head for predicting several tokens: draft_head()
};

// A generation is one thread's at a time: it may be made on one thread and
// walked on another, but all work on one model and one cache, of however many
// generations, must not overlap. Only CancelToken may be used meanwhile.
struct GenerateOptions {
  int max_tokens = 256;  // -1: no limit
  Sampler sampler;       // empty: the most probable token
  std::vector<LogitsProcessor> logits_processors;
  // Read and extended, must outlive the generation; an empty one is filled with
  // fresh caches (of who drafts, too). Null: a fresh one. Afterwards it holds
  // every token that was given out.
  PromptCache* prompt_cache = nullptr;
  // Ids that the prompt cache holds, where processors (penalties) and drafts
  // are to know of them.
  std::vector<int> earlier_tokens;
  // Instead of a prompt cache, for stream_generate(), generate(), batches
  // and sessions: what is stored of the prompt is not read again, and
  // afterwards the prompt and the answer are stored. Nothing is shared between
  // tenants, nor between models or options that make caches differ. Refused
  // with input embeddings.
  std::shared_ptr<PrefixStore> prefix_store;
  std::string prefix_tenant;
  // Positions in the prompt where a message ends. Reading it pauses there; with
  // a prefix store, layers that can't be cut are stored as of there, of the
  // prompt's end, and every checkpoint_tokens (0: not).
  std::vector<int> prompt_checkpoints;
  int checkpoint_tokens = 1024;
  int max_kv_size = 0;  // 0: no limit; else rotating caches
  int prefill_step_tokens = 2048;
  // Quantization of keys and values: 2, 3, 4, 5, 6 or 8 bits; none: off. Bits
  // of keys or values alone take the place of kv_bits; both are needed without
  // it.
  std::optional<int> kv_bits;
  std::optional<int> kv_key_bits;
  std::optional<int> kv_value_bits;
  int kv_group_size = 64;
  int quantized_kv_start = 5000;  // tokens before quantization begins
  std::optional<mx::array> input_embeddings;  // [L, D] instead of the tokens'
  // Called at the start, after each chunk of the prompt, and at its end.
  std::function<void(int done_tokens, int total_tokens)> prompt_progress;

  DraftKind draft = DraftKind::none;  // model where there is a draft_model
  ModelPtr draft_model;
  // Tokens proposed at a time. None: as many as pay, by the measured acceptance
  // and times; none where they don't.
  std::optional<int> num_draft_tokens;

  // Generation ends before the first of these that appears; nothing of it is
  // given out as text.
  std::vector<std::string> stop_texts;
  std::vector<std::vector<int>> stop_sequences;  // of token ids
  bool ignore_eos = false;
  CancelToken cancel;
  std::optional<std::chrono::steady_clock::time_point> deadline;
};

// One token as the steps yield it.
struct StepResult {
  int token = 0;
  mx::array logprobs;  // [V]
  bool from_draft = false;
};

// What speculation did so far.
struct SpeculationStatistics {
  DraftKind draft = DraftKind::none;
  int rounds = 0;  // passes over a draft
  int drafted_tokens = 0;
  int accepted_tokens = 0;
  // The same by the place in the draft, from the first on.
  std::vector<int> drafted_at;
  std::vector<int> accepted_at;
  double plain_tps = 0;  // tokens per second of its plain steps; 0: none timed
  double speedup = 0;    // tokens per second in all against that; 0: unknown
};

// The generator of tokens: next() computes one, and none at the end. The next
// step is dispatched before the last is read; the destructor waits for it.
class TokenGenerator {
 public:
  virtual ~TokenGenerator() = default;
  virtual std::optional<StepResult> next() = 0;
  // Null if it doesn't speculate.
  virtual const SpeculationStatistics* speculation() const { return nullptr; }
};

// prompt: token ids, at least one unless input embeddings are given. Never
// looks at end-of-sequence tokens or stops. Throws Error{argument, unsupported,
// memory} at once, and next() Error{cancelled}, after which it gives no more.
std::unique_ptr<TokenGenerator> generate_step(const std::vector<int>& prompt,
                                              ModelPtr model,
                                              const GenerateOptions& options);

// The same tokens, where a draft model proposes some that the model only
// checks; without one (null), the model's own head if options.draft is mtp,
// else what followed the same tokens before (n-grams). `prompt_cache` holds the
// layers of both, the model's first; one with the model's alone gets fresh ones
// of the other. At temperature 0, with n-grams and with a sampler of
// with_seed() the tokens are those of generate_step() with the same seed; else
// they have the same distribution (rejection sampling, Leviathan et al. 2023,
// where the sampler is make_sampler()'s). Throws Error{unsupported} for input
// embeddings with anything but n-grams, and where the model has no
// draft_head().
std::unique_ptr<TokenGenerator> speculative_generate_step(
    const std::vector<int>& prompt,
    ModelPtr model,
    ModelPtr draft_model,
    const GenerateOptions& options);

// Throws Error{argument} saying what differs, unless the ids of both tokenizers
// mean the same: the vocabularies token by token, and how a text is split.
void check_draft_tokenizer(const Tokenizer& tokenizer,
                           const Tokenizer& draft_tokenizer);

// One part of the answer, for one token. `text` may be empty while a character
// is incomplete or a stop sequence possible.
struct GenerationResponse {
  std::string text;
  int token = 0;  // -1 on a last part without one (cancelled, deadline)
  std::optional<mx::array> logprobs;  // [V]
  bool from_draft = false;
  int prompt_tokens = 0;
  // Of the prompt, not read but found in the prefix store; and why not more,
  // "" for all but the last.
  int reused_tokens = 0;
  std::string reuse_reason;
  double prompt_tps = 0;  // prompt tokens read per second
  int generation_tokens = 0;
  double generation_tps = 0;  // generated tokens per second
  double peak_memory_gb = 0;  // 1e9 bytes
  // "stop", "length", "cancelled" or "deadline" on the last part; else empty.
  std::string finish_reason;
  std::optional<SpeculationStatistics> speculation;  // on the last part
};

// An input range of parts; the work happens as it is walked.
class GenerationStream {
 public:
  class Impl;
  explicit GenerationStream(std::unique_ptr<Impl> impl);
  GenerationStream(GenerationStream&&) noexcept;
  GenerationStream& operator=(GenerationStream&&) noexcept;
  ~GenerationStream();

  // The next part, or none after the last.
  std::optional<GenerationResponse> next();

  class iterator {
   public:
    using iterator_concept = std::input_iterator_tag;
    using value_type = GenerationResponse;
    using difference_type = std::ptrdiff_t;

    iterator() = default;
    explicit iterator(GenerationStream* stream) : stream_(stream) { ++*this; }
    const GenerationResponse& operator*() const { return *current_; }
    const GenerationResponse* operator->() const { return &*current_; }
    iterator& operator++() {
      current_ = stream_->next();
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(std::default_sentinel_t) const { return !current_; }

   private:
    GenerationStream* stream_ = nullptr;
    std::optional<GenerationResponse> current_;
  };

  iterator begin() { return iterator(this); }
  std::default_sentinel_t end() const { return {}; }

 private:
  std::unique_ptr<Impl> impl_;
};

// `prompt` is encoded as it stands (a chat template is the caller's to apply);
// a beginning-of-sequence token is added unless it starts with one. Ends at the
// tokenizer's end-of-sequence tokens. Errors as generate_step(); besides
// Error{argument} for max_tokens 0. Of a prompt of ids the tokenizer may be
// null: then there is no text, and the model's end-of-sequence ids count.
GenerationStream stream_generate(ModelPtr model,
                                 TokenizerPtr tokenizer,
                                 const std::string& prompt,
                                 const GenerateOptions& options = {});
GenerationStream stream_generate(ModelPtr model,
                                 TokenizerPtr tokenizer,
                                 const std::vector<int>& prompt,
                                 const GenerateOptions& options = {});

// The callback form: return false to stop. Returns the last part; its finish
// reason is "cancelled" if the callback stopped.
GenerationResponse stream_generate(
    ModelPtr model,
    TokenizerPtr tokenizer,
    const std::string& prompt,
    const GenerateOptions& options,
    const std::function<bool(const GenerationResponse&)>& on_part);

// The whole text; what there is of it when cancelled.
std::string generate(ModelPtr model,
                     TokenizerPtr tokenizer,
                     const std::string& prompt,
                     const GenerateOptions& options = {});

struct LoadedModel {
  ModelPtr model;
  TokenizerPtr tokenizer;
};

// Model and tokenizer of one folder, .gguf file or hub id.
LoadedModel load(const std::string& name, const LoadOptions& options = {});

// What a cache of this model says of its origin when it is saved. `tokens`: the
// ids it has read; the tokenizer may be null.
CacheOrigin cache_origin(
    const Model& model,
    const Tokenizer* tokenizer,
    const std::optional<std::vector<int>>& tokens = std::nullopt);

// Checks that a cache read from the file `name` is one of this model. Throws
// Error{argument} naming the first difference: number and kind of layers, their
// sizes, then the origin. Without an origin (a file of the reference) the log
// says that the model can't be verified. Where the model computes in float32,
// 16-bit keys, values and states become that.
void check_saved_cache(const std::string& name,
                       PromptCache& cache,
                       const CacheMetadata& metadata,
                       Model& model,
                       const Tokenizer* tokenizer);

// Raises the Metal wired limit to the recommended working set while it lives,
// and restores it; does nothing on other devices. Waits for outstanding work.
class WiredLimit {
 public:
  explicit WiredLimit(const Model& model);
  ~WiredLimit();
  WiredLimit(const WiredLimit&) = delete;
  WiredLimit& operator=(const WiredLimit&) = delete;

 private:
  std::optional<std::size_t> previous_bytes_;
};

}  // namespace mlxlm
