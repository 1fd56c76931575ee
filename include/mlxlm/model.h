// Models: weights, configuration and the forward pass.
//
//   auto model = mlxlm::load_model("path/to/model");
//   auto cache = model->make_cache();
//   mx::array logits = model->forward(tokens, cache);  // [1, L] -> [1, L, V]
//
// A model's weights don't change after loading; forward() is to be called from
// one thread at a time.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <mlx/array.h>
#include <nlohmann/json_fwd.hpp>

#include <mlxlm/cache.h>
#include <mlxlm/error.h>

namespace mlxlm {

namespace mx = mlx::core;

struct LoadOptions {
  std::string adapter_path;  // folder of a LoRA or DoRA adapter; "": none
  std::string revision;      // of a hub model; "": main
  std::string
      config_overrides;      // JSON object merged into config.json; "": none
  bool strict = true;        // refuse weights the model doesn't use
  bool lazy = false;         // leave the weights to be read when first used
  bool draft_head = false;   // with the weights of Model::draft_head()
  ProgressHandler progress;  // downloads and conversions
};

// One parameter, as parameters() lists it.
struct Parameter {
  std::string name;  // e.g. "model.layers.0.self_attn.q_proj.weight"
  mx::array value;
};

// A model's own head for predicting several tokens: from the state that the
// model left of a token, and the token after that, it predicts the next one;
// from its own state, further ones. Method: multi-token prediction of
// DeepSeek-V3 (2024, section 2.2).
class DraftHead {
 public:
  virtual ~DraftHead() = default;

  // tokens [B, L] int32, states [B, L, D] of the token before each -> its own
  // states [B, L, D]. `cache` as make_cache()'s, or empty.
  virtual mx::array forward(const mx::array& tokens,
                            const mx::array& states,
                            const PromptCache& cache) = 0;

  // states [B, L, D] -> logits [B, L, V] of the tokens after those read.
  virtual mx::array logits(const mx::array& states) = 0;

  virtual PromptCache make_cache(int max_kv_size = 0) const = 0;

  // Of its weights.
  virtual std::size_t nbytes() const = 0;
};

// What a pass gives to go on from.
struct ModelPass {
  mx::array logits;  // [B, L, V], or at some positions
  mx::array states;  // [B, L, D], which the logits are made of
};

class Model {
 public:
  virtual ~Model() = default;

  // tokens [B, L] int32 -> logits [B, L, V]. `cache` holds one entry per layer
  // (make_cache()), or is empty for a pass without one. With
  // `input_embeddings` [B, L, D] those replace the embedding of `tokens`.
  virtual mx::array forward(
      const mx::array& tokens,
      const PromptCache& cache = {},
      const std::optional<mx::array>& input_embeddings = std::nullopt) = 0;

  // The logits [1, N, V] at N of the L positions of `tokens` [1, L]. This is
  // how batches are read: the rows' tokens one after the other, and caches that
  // know which are whose.
  virtual mx::array forward_at(
      const std::vector<int>& positions,
      const mx::array& tokens,
      const PromptCache& cache,
      const std::optional<mx::array>& input_embeddings = std::nullopt);

  // The same with the states of all L positions, which a draft head goes on
  // from; no `positions`: the logits of all, too. Throws Error{unsupported}
  // where a model never has a draft head.
  virtual ModelPass forward_with_states(
      const mx::array& tokens,
      const PromptCache& cache,
      const std::vector<int>& positions = {},
      const std::optional<mx::array>& input_embeddings = std::nullopt);

  // Lives as long as the model. Null: the model has none, or was loaded without
  // LoadOptions::draft_head.
  virtual DraftHead* draft_head() { return nullptr; }

  // The token embeddings [B, L, D] as forward() computes them before it scales
  // them.
  virtual mx::array embed(const mx::array& tokens) = 0;

  // Fresh caches of the kinds this architecture uses. `max_kv_size` > 0 limits
  // growing caches as the reference's make_prompt_cache does (rotating, keep
  // 4); an architecture that brings its own kinds ignores it, as there.
  virtual PromptCache make_cache(int max_kv_size = 0) const = 0;

  virtual const nlohmann::json& config() const = 0;
  virtual std::string model_type() const = 0;
  virtual int num_layers() const = 0;
  virtual int vocabulary_size() const = 0;
  // The longest input the model was made for, 0 if the config doesn't say.
  virtual int context_tokens() const = 0;

  // Whether what is computed depends on how the tokens are cut into passes
  // (ropes whose speed depends on the length of the input).
  virtual bool depends_on_chunks() const { return false; }

  // Every parameter with its name in the reference's layout; not the draft
  // head's, which the reference has none of.
  virtual std::vector<Parameter> parameters() const = 0;

  // End-of-sequence ids from config.json and generation_config.json.
  virtual std::vector<int> eos_token_ids() const = 0;
};

using ModelPtr = std::shared_ptr<Model>;

// Loads a folder, a .gguf file or a hub id ("org/name[@revision]").
// Throws Error{argument, config, file, format, weights, unsupported, memory,
// network}. Method: mlx_lm.utils.load_model.
ModelPtr load_model(const std::string& name, const LoadOptions& options = {});

// make_prompt_cache of the reference.
inline PromptCache make_prompt_cache(const Model& model, int max_kv_size = 0) {
  return model.make_cache(max_kv_size);
}

// The model types load_model() knows, and those of them that may have a
// Model::draft_head().
std::vector<std::string> supported_model_types();
std::vector<std::string> model_types_with_draft_head();

}  // namespace mlxlm
