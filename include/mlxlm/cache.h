// Prompt caches: what a model remembers of the tokens it has read.
//
//   auto cache = mlxlm::make_prompt_cache(*model);         // one per layer
//   mlxlm::generate(model, tokenizer, "Hello", {.prompt_cache = &cache});
//   auto before = mlxlm::checkpoint_prompt_cache(cache);
//   mlxlm::generate(model, tokenizer, " again", {.prompt_cache = &cache});
//   mlxlm::rollback_prompt_cache(cache, before);
//   mlxlm::save_prompt_cache("hello.safetensors", cache);  // mlx-lm's format
//   auto [again, metadata] = mlxlm::load_prompt_cache("hello.safetensors");
//
// Method: mlx_lm/models/cache.py of mlx-lm 0.32.2. A cache is used by one
// thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
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
  // Hides more than the above do: bool, to [B, H, L, T], true where seen.
  std::optional<mx::array> visible;
  // For caches that hold something smaller than keys and values (latents):
  // makes the two from all that is held.
  std::function<std::pair<mx::array, mx::array>(const mx::array& k,
                                                const mx::array& v)>
      expand;
};

// How quantized caches store keys and values: MLX's affine quantization with
// 2, 3, 4, 5, 6 or 8 bits for each, and a scale for each group_size (32, 64 or
// 128) numbers, which must divide the size of a head.
struct KvQuantization {
  int key_bits = 8;
  int value_bits = 8;
  int group_size = 64;

  bool operator==(const KvQuantization&) const = default;
};

// What a cache can do now.
struct CacheCapabilities {
  bool attends = false;  // holds keys and values
  // The newest tokens that trim() can drop; the rest is as if they had never
  // been read.
  int trimmable_tokens = 0;
  // trimmable_tokens is all it has read, and stays so whatever it reads. If
  // not, checkpoint() before reading is the way back.
  bool always_trimmable = false;
  bool quantizable = false;                    // to_quantized() gives a copy
  std::optional<KvQuantization> quantization;  // how it stores them now
  // The most memory that a checkpoint made now holds on to while the cache
  // reads on.
  std::size_t checkpoint_bytes = 0;
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

  // Attends from q, of the same tokens as the latest attend(), to what that one
  // saw: for layers that have no keys and values of their own. Must be
  // evaluated before the next attend() is. Throws Error{unsupported} as
  // attend() does, and for kinds whose layers share nothing.
  virtual mx::array attend_again(const mx::array& q, const AttendSpec& spec);

  virtual CacheCapabilities capabilities() const = 0;

  // Drops the newest `num_tokens` (fewer if fewer can go, see
  // CacheCapabilities); returns how many went.
  virtual int trim(int num_tokens);
  // As in the reference; may change as the cache fills.
  virtual bool is_trimmable() const { return false; }
  // Whether the cache can drop its newest tokens after reading `num_tokens`
  // more.
  virtual bool is_trimmable_after(int num_tokens) const;

  // A point to return to with rollback(), any number of times and from
  // anywhere: before, after, or on another way. Caches that keep every token
  // only note their number: free, as is going back; the rows before it are
  // kept (nbytes() at most) once trim(), set_state() or rollback() would give
  // them up. Rotating, chunked and recurrent ones hold on to their buffers,
  // nbytes() of now, and what is read next goes into a copy of them.
  // rollback() throws Error{argument} for a checkpoint of another cache.
  virtual std::unique_ptr<CacheCheckpoint> checkpoint() const = 0;
  virtual void rollback(const CacheCheckpoint& checkpoint) = 0;

  // An independent copy with the same tokens. Buffers are shared until one of
  // the two reads more: that one copies them then, nbytes() once.
  virtual std::shared_ptr<Cache> fork() const = 0;

  // A quantized copy with the same tokens, or null where the kind stays as it
  // is (recurrent states, and what is quantized already). Throws
  // Error{argument} where sizes don't fit the format.
  virtual std::shared_ptr<Cache> to_quantized(
      const KvQuantization& quantization) const;

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

// Drops the newest tokens from every layer, as many as every layer can; returns
// how many went (0 if a layer can't be trimmed).
int trim_prompt_cache(PromptCache& cache, int num_tokens);

// Of the newest tokens, how many trim_prompt_cache() can drop.
int trimmable_tokens(const PromptCache& cache);

// Tokens read so far: of the layers that count theirs, the longest.
int prompt_cache_offset(const PromptCache& cache);

std::size_t prompt_cache_nbytes(const PromptCache& cache);

// Independent copies of all layers, as Cache::fork().
PromptCache fork_prompt_cache(const PromptCache& cache);

// A checkpoint of each layer, together with the layers themselves: rolling back
// undoes quantize_prompt_cache(), too.
struct PromptCacheCheckpoint {
  PromptCache layers;
  std::vector<std::shared_ptr<CacheCheckpoint>> checkpoints;
};

PromptCacheCheckpoint checkpoint_prompt_cache(const PromptCache& cache);
void rollback_prompt_cache(PromptCache& cache,
                           const PromptCacheCheckpoint& checkpoint);

using CacheMetadata = std::map<std::string, std::string>;

// Quantizes in place the caches that hold at least `quantized_kv_start` tokens
// (maybe_quantize_kv_cache of the reference). Layers whose kind stays as it is
// are left, and the log says which, once. Throws as to_quantized().
void quantize_prompt_cache(PromptCache& cache,
                           int quantized_kv_start,
                           const KvQuantization& quantization);

// Brings every array of the cache up to date.
void evaluate_prompt_cache(const PromptCache& cache);

// What a saved cache says of the model that made it. Hashes are SHA-256 in
// hexadecimal, "" where unknown.
struct CacheOrigin {
  std::string model_type;
  std::string config_hash;
  std::string weights_hash;  // of names, shapes, dtypes and samples of values
  std::string tokenizer_hash;
  std::string template_hash;
  std::optional<std::vector<int>> tokens;  // the ids that the cache has read
};

// As entries "mlxlm.*" of a file's metadata, with the layers' layout, the
// engine and the version of these entries; and back. origin_in() gives none if
// there are no such entries (a file of the reference) and throws Error{format}
// if they can't be understood.
CacheMetadata metadata_of(const CacheOrigin& origin, const PromptCache& cache);
std::optional<CacheOrigin> origin_in(const CacheMetadata& metadata);

// The layers in words, e.g. "5 RotatingKVCache, 1 KVCache, ...".
std::string describe_layers(const PromptCache& cache);

// Writes the reference's safetensors format, atomically: an error leaves what
// was there. Kinds that the reference lacks (quantized rotating and chunked
// ones, separate bits of keys and values) can only be read here. Throws
// Error{file}.
void save_prompt_cache(const std::string& path,
                       const PromptCache& cache,
                       const CacheMetadata& metadata = {});

// Reads it, ours or the reference's. The file is not trusted: its header is
// checked before MLX reads it, class names come from a closed list, and every
// shape and number is checked. On the CPU, tensors of a megabyte or more are
// mapped: read as they are used, and copied once when tokens are appended.
// Throws Error{file, format}.
std::pair<PromptCache, CacheMetadata> load_prompt_cache(
    const std::string& path);

// Prefixes of prompts that were read, for prompts that begin alike: the next
// turn of a chat, another chat with the same system text, an agent's next call.
//
//   auto store = std::make_shared<mlxlm::PrefixStore>();
//   mlxlm::stream_generate(model, tokenizer, prompt, {.prefix_store = store});
//
// A trie of tokens. Keys and values that common beginnings share are held once;
// caches that can't be cut (rotating, chunked, recurrent) are held as of the
// positions that put() was called at. What find() gives out is a copy. All
// calls may come from any thread; one waits for another.
// Method: LRUPromptCache of mlx_lm/models/cache.py, which holds whole caches;
// the trie of blocks is RadixAttention's (Zheng et al., 2024, SGLang).
struct PrefixStoreOptions {
  // Of keys, values, states and token ids together; never exceeded. What has
  // not been used for longest goes.
  std::size_t max_bytes = std::size_t{1} << 30;
  // A folder to write to what goes, "": none. Files are prompt-cache files, and
  // outlive the store: a later one on the same folder finds them. One that is
  // damaged is dropped, and the log says so. Only one store at a time may use
  // a folder.
  std::string spill_folder;
  std::uint64_t max_spill_bytes = std::uint64_t{8} << 30;
};

// Why no more of a prompt was reused.
enum class PrefixLimit {
  none,        // all but the last token, which must be read for its logits
  unknown,     // nothing stored begins like it
  ends,        // all that is stored was reused, and the prompt goes on
  differs,     // what is stored goes on with other tokens
  checkpoint,  // more is the same, but caches that can't be cut are only held
               // at certain positions
  evicted,     // what follows was stored, and had to go
};

struct PrefixMatch {
  PromptCache cache;  // has read the first reused_tokens; empty for 0
  int reused_tokens = 0;
  int matched_tokens = 0;  // of the prompt, that are the same in the store
  PrefixLimit limit = PrefixLimit::unknown;
  std::string reason;  // the limit in a sentence, "" for none
};

struct PrefixStoreStatistics {
  std::size_t nbytes = 0;
  std::size_t num_runs = 0;  // of tokens, each held once
  std::uint64_t spilled_bytes = 0;
  std::size_t num_spilled_files = 0;
  // Since the store was made.
  std::uint64_t num_lookups = 0;
  std::uint64_t looked_up_tokens = 0;
  std::uint64_t reused_tokens = 0;
  std::uint64_t evictions = 0;
};

class PrefixStore {
 public:
  // Throws Error{file} for a spill folder that can't be used.
  explicit PrefixStore(const PrefixStoreOptions& options = {});
  ~PrefixStore();
  PrefixStore(const PrefixStore&) = delete;
  PrefixStore& operator=(const PrefixStore&) = delete;

  // A cache that has read as much of `tokens` as is stored under the key, but
  // not the last one. `key`: whatever makes caches differ, such as the model,
  // its options and a tenant; nothing is shared between keys.
  PrefixMatch find(const std::string& key, std::span<const int> tokens);

  // Stores what a cache has read, all of `tokens`; the cache itself stays the
  // caller's. False if it is more than the budget allows. Throws
  // Error{argument} if the cache has read another number of tokens.
  bool put(const std::string& key,
           std::span<const int> tokens,
           const PromptCache& cache);

  // Lets go of what was not used for longest until this much is left; with a
  // spill folder, 0 writes everything there.
  void trim_to(std::size_t max_bytes);

  bool spills() const;  // whether there is a spill folder
  std::size_t max_bytes() const;
  PrefixStoreStatistics statistics() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mlxlm
