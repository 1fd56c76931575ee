// Prompt caches: what a model remembers of the tokens it has read.
//
//   auto cache = mlxlm::make_prompt_cache(*model);         // one per layer
//   mlxlm::generate(model, tokenizer, "Hello", {.prompt_cache = &cache});
//   mlxlm::save_prompt_cache("hello.safetensors", cache);  // mlx-lm's format
//   auto [again, metadata] = mlxlm::load_prompt_cache("hello.safetensors");
//
// Method: mlx_lm/models/cache.py of mlx-lm 0.32.2. A cache is used by one
// thread at a time.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <mlx/array.h>

namespace mlxlm {

namespace mx = mlx::core;

// How one layer attends. Shapes of attend(): q [B, H, L, D], k [B, Hkv, L, D],
// v [B, Hkv, L, Dv]; H is a multiple of Hkv.
struct AttendSpec {
  float scale = 1.0f;
  int window_tokens = 0;  // 0: all earlier tokens are seen
  bool causal = true;
  float softcap = 0.0f;            // 0: off; else cap * tanh(score / cap)
  std::optional<mx::array> sinks;  // [H], learnt attention sinks
};

// A state to come back to; made and understood by one cache only.
class CacheCheckpoint {
 public:
  virtual ~CacheCheckpoint() = default;
};

// What a prompt-cache file holds of one cache, as the reference's `state`: a
// tree of arrays, whole numbers and texts.
struct CacheState {
  using List = std::vector<CacheState>;
  // monostate: Python's None
  std::variant<std::monostate, mx::array, int, std::string, List> value;
};

// The cache of one layer (or, as CacheList, of a layer's several parts).
class Cache {
 public:
  virtual ~Cache() = default;

  // The reference's class name, e.g. "RotatingKVCache".
  virtual std::string_view kind() const = 0;

  // Number of tokens read so far: the rope position of the next one.
  virtual int offset() const = 0;

  // Number of tokens held.
  virtual int size() const { return offset(); }

  virtual std::size_t nbytes() const = 0;
  virtual bool empty() const = 0;

  // Appends k and v, then attends from q to all that is held. Returns
  // [B, H, L, Dv]. Throws Error{unsupported} on caches without attention.
  virtual mx::array attend(const mx::array& q,
                           const mx::array& k,
                           const mx::array& v,
                           const AttendSpec& spec);

  // Drops the newest `num_tokens` (fewer if fewer are held); returns how many
  // went: none unless is_trimmable(), which may change as the cache fills.
  virtual bool is_trimmable() const { return false; }
  virtual int trim(int num_tokens);
  // Whether the cache can drop its newest tokens after reading `num_tokens`
  // more.
  virtual bool is_trimmable_after(int num_tokens) const;

  // A point to return to with rollback(), any number of times; costs nbytes()
  // of memory at most. rollback() throws Error{argument} for a checkpoint of
  // another kind.
  virtual std::unique_ptr<CacheCheckpoint> checkpoint() const = 0;
  virtual void rollback(const CacheCheckpoint& checkpoint) = 0;

  // A quantized copy with the same tokens, or null where the kind stays as it
  // is. Throws Error{unsupported} where quantization is refused, and
  // Error{argument} where sizes don't fit the format.
  virtual std::shared_ptr<Cache> to_quantized(int group_size, int bits) const;

  // The content, in the reference's order. set_state() checks every shape and
  // number and throws Error{format}; the cache is unchanged then.
  virtual CacheState state() const = 0;
  virtual void set_state(const CacheState& state) = 0;

  // Every array that must be evaluated to bring the cache up to date.
  virtual void append_arrays_to(std::vector<mx::array>& out) const = 0;
};

using CachePtr = std::shared_ptr<Cache>;
// One entry per layer, as the reference's list.
using PromptCache = std::vector<CachePtr>;

// True if every layer can be trimmed now.
bool can_trim_prompt_cache(const PromptCache& cache);

// Drops the newest tokens from every layer; returns how many went (0 if a
// layer can't be trimmed).
int trim_prompt_cache(PromptCache& cache, int num_tokens);

using CacheMetadata = std::map<std::string, std::string>;

// Quantizes in place the caches that hold at least `quantized_kv_start` tokens
// (maybe_quantize_kv_cache of the reference). Throws as to_quantized().
void quantize_prompt_cache(PromptCache& cache,
                           int quantized_kv_start,
                           int group_size,
                           int bits);

// Brings every array of the cache up to date.
void evaluate_prompt_cache(const PromptCache& cache);

// Writes the reference's safetensors format, atomically. Throws Error{file}.
void save_prompt_cache(const std::string& path,
                       const PromptCache& cache,
                       const CacheMetadata& metadata = {});

// Reads it, ours or the reference's. The file is not trusted: its header is
// checked before MLX reads it, class names come from a closed list, and every
// shape and number is checked. Throws Error{file, format}.
std::pair<PromptCache, CacheMetadata> load_prompt_cache(
    const std::string& path);

}  // namespace mlxlm
