// The decoder that every ArchSpec describes.
#pragma once

#include <nlohmann/json.hpp>

#include <mlxlm/model.h>

#include "models/layer.h"

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
  mx::array embed(const mx::array& tokens) override;
  PromptCache make_cache(int max_kv_size) const override;

  const nlohmann::json& config() const override { return config_; }
  std::string model_type() const override;
  int num_layers() const override;
  int vocabulary_size() const override { return spec_.vocabulary_size; }
  int context_tokens() const override { return spec_.context_tokens; }
  bool depends_on_chunks() const override;
  std::vector<Parameter> parameters() const override { return parameters_; }
  std::vector<int> eos_token_ids() const override;

 private:
  void bind_weights(Checkpoint& checkpoint,
                    const Adapter* adapter,
                    const LoadOptions& options);
  void prepare_weights();
  using TokenRuns = std::vector<kernels::TokenRun>;
  mx::array first_state(mx::array embeddings, const TokenRuns& runs) const;
  mx::array run(const Layer& layer, const mx::array& x, Cache* cache) const;
  // tokens [B, L] -> what the last layer leaves, [B, L, D].
  mx::array run_layers(const mx::array& tokens,
                       const PromptCache& cache,
                       const std::optional<mx::array>& input_embeddings);
  mx::array logits_of(const mx::array& h) const;
  mx::array finish_logits(mx::array logits) const;

  ArchSpec spec_;
  nlohmann::json config_;
  mx::Dtype dtype_;  // of activations
  kernels::Linear embedding_;
  std::optional<kernels::Linear> positions_;
  std::vector<Layer> layers_;
  std::optional<kernels::Norm> norm_;
  std::optional<kernels::Linear> own_head_;  // none: the embedding's
  std::vector<Parameter> parameters_;
};

}  // namespace mlxlm
