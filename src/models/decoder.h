// The decoder that every ArchSpec describes.
#pragma once

#include <variant>

#include <nlohmann/json.hpp>

#include <mlxlm/model.h>

#include "models/arch_spec.h"
#include "models/weight_binder.h"
#include "nn/attention.h"
#include "nn/mlp.h"

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
  mx::array embed(const mx::array& tokens) override;
  PromptCache make_cache(int max_kv_size) const override;

  const nlohmann::json& config() const override { return config_; }
  std::string model_type() const override;
  int num_layers() const override;
  int vocabulary_size() const override { return spec_.vocabulary_size; }
  int context_tokens() const override { return spec_.context_tokens; }
  std::vector<Parameter> parameters() const override { return parameters_; }
  std::vector<int> eos_token_ids() const override;

 private:
  struct Layer {
    std::optional<kernels::Norm> attention_norm, attention_output_norm;
    std::optional<kernels::Norm> mlp_norm, mlp_output_norm;
    nn::Attention attention;
    std::variant<nn::Mlp, nn::Experts> mlp;
  };

  Layer make_layer(WeightBinder& weights, int index) const;
  nn::Attention make_attention(WeightBinder& weights,
                               const std::string& path,
                               const LayerSpec& layer) const;
  nn::Mlp make_mlp(WeightBinder& weights,
                   const std::string& path,
                   int hidden_size) const;
  nn::Experts make_experts(WeightBinder& weights,
                           const std::string& path) const;
  void bind_weights(Checkpoint& checkpoint,
                    const Adapter* adapter,
                    const LoadOptions& options);
  void prepare_weights();
  mx::array run(const Layer& layer, const mx::array& x, Cache* cache) const;
  mx::array finish_logits(mx::array logits) const;

  ArchSpec spec_;
  nlohmann::json config_;
  mx::Dtype dtype_;  // of activations
  kernels::Linear embedding_;
  std::vector<Layer> layers_;
  std::optional<kernels::Norm> norm_;
  std::optional<kernels::Linear> own_head_;  // none: the embedding's
  std::vector<Parameter> parameters_;
};

}  // namespace mlxlm
