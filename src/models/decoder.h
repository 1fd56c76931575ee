// The decoder that every ArchSpec describes.
#pragma once

#include <nlohmann/json.hpp>

#include <mlxlm/model.h>

#include "models/decoder_step.h"
#include "models/draft_head.h"
#include "models/layer.h"
#include "models/weight_preparation.h"
#include "nn/ngram_embedding.h"
#include "nn/residual_blocks.h"

namespace mlxlm {

class Decoder : public Model {
 public:
  // Takes its weights from the checkpoint and checks them, and those of the
  // adapter (may be null). Throws Error{weights}.
  Decoder(ArchSpec spec,
          Checkpoint checkpoint,
          const Adapter* adapter,
          const LoadOptions& options);
  // Layers point into the spec.
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  mx::array forward(const mx::array& tokens,
                    const PromptCache& cache,
                    const std::optional<mx::array>& input_embeddings) override;
  mx::array forward_at(
      const std::vector<int>& positions,
      const mx::array& tokens,
      const PromptCache& cache,
      const std::optional<mx::array>& input_embeddings) override;
  ModelPass forward_with_states(
      const mx::array& tokens,
      const PromptCache& cache,
      const std::vector<int>& positions,
      const std::optional<mx::array>& input_embeddings) override;
  DraftHead* draft_head() override { return draft_head_.get(); }
  mx::array embed(const mx::array& tokens) override;
  PromptCache make_cache(int max_kv_size) const override;

  const nlohmann::json& config() const override { return config_; }
  std::string model_type() const override;
  int num_layers() const override;
  int vocabulary_size() const override { return spec_.vocabulary_size; }
  int context_tokens() const override { return spec_.context_tokens; }
  bool depends_on_chunks() const override;
  std::vector<Parameter> parameters() const override;
  std::vector<int> eos_token_ids() const override;

  // For the draft head: bytes of its weights, and a layer of attention by
  // itself, whose cache may be null.
  std::size_t draft_head_nbytes() const;
  mx::array run_alone(const Layer& layer,
                      const mx::array& x,
                      Cache* cache) const;
  // h [B, L, D] -> [B, L, V]; norm may be null.
  mx::array logits_of(const mx::array& h, const kernels::Norm* norm) const;
  CachePtr make_layer_cache(const LayerSpec& layer, int max_kv_size) const;

 private:
  bool is_of_draft_head(const Parameter& parameter) const;
  std::vector<SplitTensor> bind_weights(Checkpoint& checkpoint,
                                        const Adapter* adapter,
                                        const LoadOptions& options);
  // Leaves the rank its part, and reads it unless `lazy`.
  void shard_weights(std::vector<SplitTensor>& splits, bool lazy);
  // Reads the weights, in the kernels' form where they have one.
  void prepare_weights(std::vector<SplitTensor> splits);
  using TokenRuns = std::vector<kernels::TokenRun>;
  mx::array embed_after(const mx::array& tokens,
                        const PromptCache& cache) const;
  mx::array first_state(mx::array embeddings, const TokenRuns& runs) const;
  // tokens [B, L] -> what the last layer leaves, [B, L, D].
  mx::array run_layers(const mx::array& tokens,
                       const PromptCache& cache,
                       const std::optional<mx::array>& input_embeddings);
  void bind_side_inputs(WeightBinder& weights);
  void bind_ngrams(WeightBinder& weights, const NgramSpec& ngram);
  void repeat_layers();
  void index_caches();
  std::vector<CachePtr> layer_caches(const PromptCache& cache) const;
  // A pass over the tokens of some runs, of which each row has one.
  struct Pass {
    TokenRuns runs;
    std::optional<mx::array> shared;  // nn::MixerInput's
    // That each layer appends to or, without keys, reads; empty or null: none.
    std::vector<CachePtr> caches;
    std::optional<nn::ProjectedKeys> projected;  // of the latest that did so
    std::optional<mx::array> shortcut;           // the next layer adds it
    nn::ResidualBlocks blocks;
    std::vector<nn::CompressedShare> compressed;
    std::optional<mx::array> read;      // nn::HyperMix's, for the next part
    const mx::array* tokens = nullptr;  // [B, L]

    Cache* cache_of(int layer) const {
      return caches.empty() || layer < 0 ? nullptr : caches[layer].get();
    }
  };
  // The layer's own cache and the other that it reads; null: none.
  struct Caches {
    Cache* own = nullptr;
    Cache* other = nullptr;
  };
  // What attention makes of x, [B, H, L, Dv], and what projects it.
  struct Heads {
    mx::array answers;
    const kernels::Linear* out;
    bool partial = false;  // nn::Attention::partial
  };
  mx::array mix(const Layer& layer,
                const mx::array& x,
                bool onto_stream,
                Cache* cache,
                Pass& pass) const;
  // None: the layer has another mixer.
  std::optional<Heads> attend(const Layer& layer,
                              const mx::array& x,
                              Caches caches,
                              Pass& pass) const;
  // What attention or another mixer makes of x [B, L, D], added to x where it
  // is to go `onto_stream`.
  mx::array first_part(const Layer& layer,
                       const mx::array& x,
                       const std::optional<Heads>& heads,
                       bool onto_stream,
                       Caches caches,
                       Pass& pass) const;
  // What the MLP or experts make of x, added to the stream; both may be null.
  mx::array second_part(const Layer& layer,
                        const mx::array& x,
                        const kernels::Norm* norm,
                        const mx::array* stream,
                        const Pass& pass) const;
  mx::array run(const Layer& layer,
                const mx::array& x,
                Caches caches,
                Pass& pass) const;
  mx::array run_over_depth(const Layer& layer,
                           const mx::array& x,
                           Caches caches,
                           Pass& pass) const;
  mx::array run_hyper(const Layer& layer,
                      const mx::array& streams,
                      Caches caches,
                      Pass& pass) const;
  mx::array run_streams(const Layer& layer,
                        const mx::array& streams,
                        const mx::array& per_layer_input,
                        Caches caches,
                        Pass& pass) const;
  mx::array finish_logits(mx::array logits) const;

  ArchSpec spec_;
  nlohmann::json config_;
  mx::Dtype dtype_;  // of activations
  bool float32_weights_;
  kernels::Linear embedding_;
  std::optional<kernels::Linear> positions_;
  std::optional<nn::PerLayerInputs> per_layer_inputs_;
  std::optional<nn::NgramEmbedding> ngram_embedding_;
  std::vector<kernels::Linear> altup_in_, altup_out_;
  std::vector<Layer> layers_;
  // Of each layer: which entry of the prompt cache is its own, or that of the
  // layer whose keys it reads; -1: none.
  std::vector<int> cache_index_;
  int num_caches_ = 0;
  bool passes_keys_on_ = false;  // LayerSpec::projects_no_keys of any layer
  std::optional<kernels::Norm> norm_;
  std::optional<nn::HyperHead> hyper_head_;
  std::optional<kernels::Norm> last_depth_mix_;  // before it, Layer::Depth
  std::optional<kernels::Linear> own_head_;      // none: the embedding's
  bool partial_head_ = false;  // own_head_ has some of the vocabulary
  std::unique_ptr<DecoderDraftHead> draft_head_;
  std::unique_ptr<DecoderStep> step_;  // null: there is none
  std::vector<Parameter> parameters_;  // and the draft head's
};

}  // namespace mlxlm
