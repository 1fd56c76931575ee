// Many generations at once on one model.
//
//   mlxlm::BatchGenerator batch(model, tokenizer);
//   for (std::string prompt : {"One", "Two", "Three"}) {
//     batch.insert({.prompt = tokenizer->encode(prompt)});
//   }
//   std::map<mlxlm::RowId, std::string> answers;
//   while (!batch.empty()) {
//     for (const auto& [row, part, error] : batch.next()) {
//       answers[row] += part.text;
//     }
//   }
//
// Every row behaves as if it were alone: its own options, cache of any kind,
// sampler and end. Rows join and leave between passes; one pass of the model
// reads the next token of every row that decodes and a chunk of the prompts
// that are still to be read, so that weights are read once for all. Nothing is
// padded. Method: continuous batching with chunked prefill (Yu et al. 2022;
// Agrawal et al. 2023); the reference's BatchGenerator and batch_generate.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <mlxlm/generate.h>

namespace mlxlm {

using RowId = std::uint64_t;

// What a row's cache has read.
struct ReadCache {
  PromptCache cache;
  std::vector<int> tokens;  // without those of a cache that came with the row
};

struct BatchRequest {
  std::vector<int> prompt;  // token ids; may be empty with input embeddings
  // As of stream_generate(). A random sampler draws independently of the other
  // rows if it has a seed of its own. Rows with the same prefix store read what
  // their prompts have in common once: those that come later wait for it. Rows
  // draft independently; what the same draft model or head reads for several of
  // them it reads in one pass.
  GenerateOptions options = {};
  int priority = 0;         // higher ones start first
  std::string tenant = {};  // tenants of one priority take turns
  // The prompt in parts instead, of which empty ones don't count. Reading stops
  // where each ends, of the last one before its last token, and `on_segment` is
  // called with its index and what the cache has read: on the thread of next(),
  // which it may not use. Of segments that a prefix store holds, and a last one
  // of one token, it isn't told. What it throws ends the row as an error.
  // Method: BatchGenerator.insert_segments of the reference.
  std::vector<std::vector<int>> segments = {};
  std::function<void(int segment, const ReadCache& read)> on_segment = {};
};

struct BatchOptions {
  int max_rows = 32;         // decoded at the same time
  int max_prompt_rows = 8;   // prompts read at the same time
  int max_waiting = 100000;  // more requests are refused
  // Prompt tokens of one pass: while others decode, and when nobody does. A
  // row's next token waits for interleaved_tokens of others' prompts at most
  // (and as many that draft models read), however long those are. The exception
  // are rows whose results depend on how their prompt is cut (max_kv_size,
  // quantization of keys and values, dynamic ropes): of those a pass reads a
  // chunk of their own prefill_step_tokens, as they would be read alone, and
  // where that is more, nothing else of prompts.
  int interleaved_tokens = 512;
  int prefill_step_tokens = 2048;
  // Bytes for the model's weights and those of draft models (each once), prefix
  // stores (their max_bytes), the caches of all rows and what a pass computes,
  // which reads fewer prompt tokens where it must; none: nine tenths of what is
  // free beside the weights. Not counted are copies that callers keep: parts
  // with their logprobs, extracted caches.
  std::optional<std::uint64_t> memory_budget_bytes = std::nullopt;
};

// What a row gives out in one pass.
struct BatchPart {
  RowId row = 0;
  // As of stream_generate(); besides, the finish reason "error".
  GenerationResponse part;
  std::string error = {};  // the message, where the finish reason is "error"
};

// Work done so far; the difference of two is that of a window of time.
struct BatchStats {
  std::uint64_t passes = 0;
  std::uint64_t prompt_tokens = 0;
  std::uint64_t generation_tokens = 0;
  std::uint64_t reused_tokens = 0;  // found in prefix stores, not read
  std::uint64_t preemptions = 0;
  // Time of passes, by the share of prompt tokens and others in each.
  double prompt_seconds = 0;
  double generation_seconds = 0;
  double peak_memory_gb = 0;  // 1e9 bytes; of the process, not of the window

  double prompt_tps() const;
  double generation_tps() const;
  BatchStats operator-(const BatchStats& before) const;
};

// Used by one thread at a time; CancelToken may be used from any. One that was
// moved from throws Error{argument} on every call.
class BatchGenerator {
 public:
  // The tokenizer may be null: there is no text then, and the model's
  // end-of-sequence ids count. Throws Error{argument}.
  BatchGenerator(ModelPtr model,
                 TokenizerPtr tokenizer,
                 const BatchOptions& options = {});
  BatchGenerator(BatchGenerator&&) noexcept;
  BatchGenerator& operator=(BatchGenerator&&) noexcept;
  ~BatchGenerator();

  // Queues a request. Throws Error{argument, unsupported} for what can't run,
  // Error{memory} with the figures if it could never fit the budget, and
  // Error{argument} after close(). Nothing is queued then.
  RowId insert(BatchRequest request);

  // One pass; a part for each row that has a token or ends. Empty parts don't
  // mean the end: prompts take several passes.
  std::vector<BatchPart> next();
  // Passes until a row has something, or nothing is left.
  std::vector<BatchPart> next_generated();

  // No row waits or runs.
  bool empty() const;
  std::size_t num_rows() const;

  // Ends a row without a last part; its tokens so far are gone unless its cache
  // is extracted before. Throws Error{argument} for a row that isn't there.
  void remove(RowId row);
  // A copy of a running row's cache (buffers are shared until one changes), the
  // model's layers: with earlier_tokens, who drafts reads those by itself.
  // Throws Error{argument} for a row that isn't there.
  ReadCache extract_cache(RowId row) const;

  BatchStats stats() const;
  // Ends all rows; insert() throws from now on.
  void close();

 private:
  class Impl;
  Impl& impl() const;
  std::unique_ptr<Impl> impl_;
};

// Answers in the order of the prompts.
struct BatchResponse {
  std::vector<std::string> texts;
  std::vector<std::string> finish_reasons;
  BatchStats stats;
  // Where asked for:
  std::vector<PromptCache> caches;
  std::vector<std::vector<int>> token_ids;   // without one that stops
  std::vector<std::vector<float>> logprobs;  // of those tokens
};

struct BatchReturns {
  bool prompt_caches = false;
  bool token_ids = false;
  bool logprobs = false;
};

// One request of an Engine. Movable; used by one thread at a time. The answer
// is cancelled when its handle goes. One that was moved from throws
// Error{argument} on every call.
class PendingAnswer {
 public:
  class Impl;
  explicit PendingAnswer(std::shared_ptr<Impl> impl);
  PendingAnswer(PendingAnswer&&) noexcept = default;
  PendingAnswer& operator=(PendingAnswer&& other) noexcept;
  ~PendingAnswer();

  // Waits for the next part; none after the last. Throws what insert() throws
  // for a request that can't run, and Error{argument} with the message of a row
  // that failed.
  std::optional<GenerationResponse> next();
  // Likewise, but not longer than this: none then, too. See ended().
  std::optional<GenerationResponse> next_within(std::chrono::milliseconds time);
  // The last part was taken.
  bool ended() const;
  // The whole text that is still to come.
  std::string text();
  // May be called from any thread; the last part says "cancelled".
  void cancel();

 private:
  Impl& impl() const;
  std::shared_ptr<Impl> impl_;
};

struct EngineOptions {
  BatchOptions batch = {};
  // Requests taken over but not started; submit() waits beyond.
  int max_queued = 1000;
  // Whether parts bring their logprobs: 4 bytes for each entry of the
  // vocabulary, for each part that isn't taken yet.
  bool logprobs = false;
};

// A batch with a thread of its own, which does all of MLX's work: every
// function may be called from any thread.
//
//   mlxlm::Engine engine(model, tokenizer);
//   auto answer = engine.submit({.prompt = tokens});
//   while (auto part = answer.next()) std::cout << part->text;
class Engine {
 public:
  using OnPart = std::function<void(const BatchPart&)>;

  // Throws as BatchGenerator.
  Engine(ModelPtr model,
         TokenizerPtr tokenizer,
         const EngineOptions& options = {});
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  // Ends all answers as cancelled.
  ~Engine();

  // Waits while too many requests are queued. Throws Error{cancelled} once the
  // engine shuts down.
  PendingAnswer submit(BatchRequest request);
  // None at once instead of waiting.
  std::optional<PendingAnswer> try_submit(BatchRequest request);
  // With each part `on_part` is called on the engine's thread, which waits
  // meanwhile; `part.row` is the id given out here. An error comes as a part.
  RowId submit(BatchRequest request, OnPart on_part);

  BatchStats stats() const;
  // Answers that haven't ended.
  std::size_t num_rows() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// All at once (batch_generate of the reference). A row that fails throws its
// error.
BatchResponse batch_generate(ModelPtr model,
                             TokenizerPtr tokenizer,
                             std::vector<BatchRequest> requests,
                             const BatchReturns& returns = {},
                             const BatchOptions& options = {});

}  // namespace mlxlm
