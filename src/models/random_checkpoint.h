// Tiny random models of any family, with a draft head where asked for, for
// tests.
#pragma once

#include <regex>
#include <string>

#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/error.h>

#include "models/make_model.h"

namespace mlxlm {

// A checkpoint of whatever tensors the configuration needs: those that are said
// to be missing, drawn, beside the given ones.
inline Checkpoint random_checkpoint(const nlohmann::json& config,
                                    std::uint64_t seed,
                                    const Weights& given = {}) {
  Checkpoint checkpoint;
  checkpoint.weights = given;
  checkpoint.config = config;
  checkpoint.source = "random";
  const std::regex missing(
      R"(\n  (\S+): is missing; the model needs \[(.*)\])");
  for (std::uint64_t round = 0;; ++round) {
    std::string message;
    try {
      make_model(checkpoint);
      return checkpoint;
    } catch (const Error& error) {
      message = error.what();
    }
    bool found = false;
    for (std::sregex_iterator it(message.begin(), message.end(), missing), end;
         it != end;
         ++it) {
      mx::Shape shape;
      std::istringstream sizes((*it)[2].str());
      for (std::string size; std::getline(sizes, size, ',');) {
        shape.push_back(std::stoi(size));
      }
      const auto name = (*it)[1].str();
      const auto key = mx::random::key(seed * 1000 + round * 100 +
                                       checkpoint.weights.size());
      auto value = mx::random::normal(shape, mx::float32, 0.0f, 0.3f, key);
      if (name.find("norm") != std::string::npos) {
        value = mx::add(value, mx::array(1.0f));
      }
      value.eval();
      checkpoint.weights.insert_or_assign(name, value);
      found = true;
    }
    if (!found) throw Error(ErrorKind::config, message);
  }
}

// A configuration with the fields of another, which count where both have one.
inline nlohmann::json joined(nlohmann::json one, const nlohmann::json& other) {
  one.update(other);
  return one;
}

// A few experts as DeepSeek's configurations describe them.
inline nlohmann::json config_of_experts() {
  return {{"n_routed_experts", 4},
          {"n_shared_experts", 1},
          {"num_experts_per_tok", 2},
          {"moe_intermediate_size", 16},
          {"first_k_dense_replace", 1},
          {"n_group", 1},
          {"topk_group", 1},
          {"norm_topk_prob", true},
          {"routed_scaling_factor", 1.5}};
}

// Gated delta networks among attention, and a few experts, as Qwen's do.
inline nlohmann::json config_of_hybrid() {
  return {{"num_experts", 4},
          {"num_experts_per_tok", 2},
          {"decoder_sparse_step", 1},
          {"moe_intermediate_size", 16},
          {"shared_expert_intermediate_size", 16},
          {"mlp_only_layers", nlohmann::json::array()},
          {"norm_topk_prob", true},
          {"full_attention_interval", 2},
          {"partial_rotary_factor", 0.5},
          {"linear_num_value_heads", 4},
          {"linear_num_key_heads", 2},
          {"linear_key_head_dim", 8},
          {"linear_value_head_dim", 8},
          {"linear_conv_kernel_dim", 3}};
}

// A weight of the model, which may be the text half of a larger one.
inline const mx::array& text_weight(const Checkpoint& checkpoint,
                                    const std::string& name) {
  auto found = checkpoint.weights.find(name);
  return found != checkpoint.weights.end()
             ? found->second
             : checkpoint.weights.at("language_model." + name);
}

// Where a family's checkpoints have the parts of the head.
struct DraftHeadNames {
  std::string layer;  // with a dot
  std::string token_norm, state_norm, projection, norm;
  std::string mlp_norm = "post_attention_layernorm";
};

inline DraftHeadNames draft_head_beside_layer(
    int num_layers, const std::string& layers = "model.layers.") {
  const auto layer = layers + std::to_string(num_layers) + ".";
  return {layer,
          layer + "enorm",
          layer + "hnorm",
          layer + "eh_proj",
          layer + "shared_head.norm"};
}

inline DraftHeadNames draft_head_of_mimo() {
  const std::string layer = "model.mtp_layers.0.";
  return {layer,
          layer + "token_layernorm",
          layer + "hidden_layernorm",
          layer + "input_proj",
          layer + "final_layernorm"};
}

// Of exaone_moe and the qwen3 hybrids.
inline DraftHeadNames draft_head_apart() {
  return {"mtp.layers.0.",
          "mtp.pre_fc_norm_embedding",
          "mtp.pre_fc_norm_hidden",
          "mtp.fc",
          "mtp.norm"};
}

// A model without other layers than the head's: `layer` is its checkpoint. Adds
// the head to a model's.
inline void add_draft_head(Checkpoint& checkpoint,
                           const Checkpoint& layer,
                           const DraftHeadNames& names) {
  const std::string path = "model.layers.0.";
  const int width = text_weight(layer, "model.norm.weight").shape(0);
  for (const auto& [name, value] : layer.weights) {
    const auto at = name.find(path);
    if (at == std::string::npos) continue;
    auto rest = name.substr(at + path.size());
    if (rest == "post_attention_layernorm.weight") {
      rest = names.mlp_norm + ".weight";
    }
    checkpoint.weights.insert_or_assign(names.layer + rest, value);
  }
  auto add = [&](const std::string& name, const mx::array& value) {
    checkpoint.weights.insert_or_assign(name + ".weight", value);
  };
  auto draw = [&](mx::Shape shape, std::uint64_t seed) {
    return mx::random::normal(
        std::move(shape), mx::float32, 0.5f, 0.3f, mx::random::key(seed));
  };
  add(names.token_norm, draw({width}, 71));
  add(names.state_norm, draw({width}, 72));
  add(names.projection, draw({width, 2 * width}, 73));
  add(names.norm, text_weight(layer, "model.norm.weight"));
}

}  // namespace mlxlm
