// muse_spark as published, with joined experts, gates that stand for two
// factors and gains without their 1, as floats and with experts of 4 bits,
// computes what the converted checkpoint does.
#include <map>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/model.h>

#include "models/random_checkpoint.h"
#include "models/weight_names.h"
#include "tests/support/model_writer.h"
#include "tests/support/safetensors_dtypes.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using nlohmann::json;

constexpr int kHeadSize = 8;
constexpr int kLayers = 3;

json config() {
  return {{"model_type", "muse_spark"},
          {"vision_config", {{"hidden_size", 8}}},
          {"text_config",
           {{"hidden_size", 32},
            {"num_attention_heads", 4},
            {"num_key_value_heads", 2},
            {"head_dim", kHeadSize},
            {"num_hidden_layers", kLayers},
            {"vocab_size", 40},
            {"rms_norm_eps", 1e-5},
            {"post_norm_eps", 1e-6},
            {"rope_parameters", {{"rope_theta", 1e4}}},
            {"layer_rope_theta", {1e4, 1e4, 0}},
            {"layer_types",
             {"sliding_attention", "sliding_attention", "full_attention"}},
            {"sliding_window", 3},
            {"final_logit_softcapping", 20.0},
            {"output_multiplier", 0.5},
            {"num_local_experts", 3},
            {"num_experts_per_tok", 2},
            {"moe_hidden_size", 32},
            {"moe_intermediate_size", 32},
            {"qk_scale_factor", 2.0}}}};
}

std::string layer_path(int layer) {
  return "model.language_model.layers." + std::to_string(layer) + ".";
}

mx::array take(Checkpoint& checkpoint, const std::string& name) {
  auto value = take_weight(checkpoint, name);
  EXPECT_TRUE(value) << name;
  return value.value_or(mx::array(0.0f));
}

// Rows (2i, 2i + 1) of each head, which turn together, become (i, i + half).
mx::array halves(const mx::array& rows) {
  auto pairs = mx::unflatten(rows, 0, {-1, kHeadSize / 2, 2});
  return mx::reshape(mx::swapaxes(pairs, 1, 2), rows.shape());
}

// A gate's factors take the place of random ones, and it theirs.
void publish_gate(Checkpoint& converted,
                  Checkpoint& published,
                  const std::string& mix,
                  const std::string& gate,
                  int seed) {
  auto values =
      mx::random::normal({32}, mx::float32, 0.0f, 0.3f, mx::random::key(seed));
  auto weighed = mx::divide(values, mx::array(0.3f));
  auto beta = mx::sigmoid(weighed);
  auto alpha = mx::sqrt(mx::multiply(mx::sigmoid(mx::negative(weighed)),
                                     mx::add(beta, mx::array(1.0f))));
  converted.weights.insert_or_assign(mix + "_alpha", alpha);
  converted.weights.insert_or_assign(mix + "_beta", beta);
  take(published, mix + "_alpha");
  take(published, mix + "_beta");
  published.weights.insert_or_assign(gate, values);
}

void publish_attention(Checkpoint& published, const std::string& attention) {
  auto rows = mx::split(
      take(published, attention + "qkvg_proj.weight"), {32, 48, 64}, 0);
  rows[0] = halves(rows[0]);
  rows[1] = halves(rows[1]);
  const char* names[] = {"q_proj", "k_proj", "v_proj", "gate_proj"};
  for (int i = 0; i < 4; ++i) {
    published.weights.insert_or_assign(attention + names[i] + ".weight",
                                       rows[i]);
  }
}

void publish_experts(Checkpoint& published, const std::string& experts) {
  auto gate = take(published, experts + "gate_proj.weight");
  auto up = take(published, experts + "up_proj.weight");
  published.weights.insert_or_assign(experts + "gate_up_proj",
                                     mx::concatenate({gate, up}, 1));
  published.weights.insert_or_assign(
      experts + "down_proj", take(published, experts + "down_proj.weight"));
}

struct Small {
  mx::array bytes;   // [E, N, K / 2]
  mx::array scales;  // [E, N, K / 16]
  mx::array values;  // [E, N, K] without the experts' own scales
};

Small to_nvfp4(const mx::array& weight) {
  auto parts = mx::quantize(weight, 16, 4, "nvfp4");
  auto values = mx::dequantize(parts[0],
                               parts[1],
                               std::nullopt,
                               16,
                               4,
                               "nvfp4",
                               std::nullopt,
                               mx::float32);
  return {mx::view(parts[0], mx::uint8), parts[1], values};
}

// Each expert has one more scale, gate and up their own.
void quantize_experts(Checkpoint& converted,
                      Checkpoint& published,
                      const std::string& experts,
                      std::map<std::string, std::string>& dtypes) {
  auto& weights = published.weights;
  std::vector<Small> small;
  std::vector<mx::array> second;
  float factor = 0.5f;
  for (const char* part : {"gate_proj", "up_proj", "down_proj"}) {
    const auto name = experts + part + ".weight";
    auto own = mx::multiply(mx::array({1.0f, 1.5f, 0.75f}), mx::array(factor));
    factor += 0.2f;
    small.push_back(to_nvfp4(take(published, name)));
    second.push_back(own);
    converted.weights.insert_or_assign(
        name, mx::multiply(small.back().values, mx::reshape(own, {3, 1, 1})));
  }
  auto joined = [&](mx::array Small::*part) {
    return mx::concatenate({small[0].*part, small[1].*part}, 1);
  };
  weights.insert_or_assign(experts + "gate_up_proj", joined(&Small::bytes));
  weights.insert_or_assign(experts + "gate_up_proj_weight_scale",
                           joined(&Small::scales));
  weights.insert_or_assign(experts + "gate_up_proj_weight_scale_2",
                           mx::stack({second[0], second[1]}, 1));
  weights.insert_or_assign(experts + "down_proj", small[2].bytes);
  weights.insert_or_assign(experts + "down_proj_weight_scale", small[2].scales);
  weights.insert_or_assign(experts + "down_proj_weight_scale_2", second[2]);
  for (const char* part : {"gate_up_proj", "down_proj"}) {
    dtypes[experts + part + "_weight_scale"] = "F8_E4M3";
    weights.insert_or_assign(experts + part + "_input_scale", mx::ones({3}));
  }
}

mx::array logits_of(Model& model) {
  return model.forward(mx::array({5, 6, 7, 30, 2, 39, 11}, {1, 7}));
}

// The experts of the middle layer have 4 bits.
void expect_same_logits(bool quantized) {
  auto converted = random_checkpoint(config(), 4);
  auto published = converted;
  std::map<std::string, std::string> dtypes;
  for (int i = 0; i < kLayers; ++i) {
    const auto path = layer_path(i);
    publish_gate(converted,
                 published,
                 path + "add_attn",
                 path + "post_attention_residual_gate.gate",
                 2 * i);
    publish_gate(converted,
                 published,
                 path + "add_ffn",
                 path + "post_feedforward_residual_gate.gate",
                 2 * i + 1);
    for (const char* norm : {"input_layernorm",
                             "pre_feedforward_layernorm",
                             "post_feedforward_layernorm",
                             "mlp.pre_expert_norm",
                             "mlp.experts.post_expert_norm"}) {
      auto& gain = published.weights.at(path + norm + ".weight");
      gain = mx::subtract(gain, mx::array(1.0f));
    }
    publish_attention(published, path + "self_attn.");
    const auto experts = path + "mlp.experts.";
    if (quantized && i == 1) {
      quantize_experts(converted, published, experts, dtypes);
    } else {
      publish_experts(published, experts);
    }
  }
  for (const char* sense : {"audio_tower", "vision_tower", "vision_adapter"}) {
    published.weights.emplace(std::string("model.") + sense + ".a.weight",
                              mx::zeros({2, 2}));
  }
  auto published_config = config();
  if (quantized) {
    published_config["quantization_config"] = {{"quant_method", "modelopt"},
                                               {"quant_algo", "NVFP4"}};
  }
  const TemporaryFolder folder;
  write_text(folder.path() / "config.json", published_config.dump());
  const auto file = folder.path() / "model.safetensors";
  mx::save_safetensors(file.string(), published.weights);
  set_dtypes(file, dtypes);
  auto expected = logits_of(*make_model(converted));
  auto actual = logits_of(*load_model(folder.path().string()));
  auto gap = mx::max(mx::abs(mx::subtract(expected, actual))).item<float>();
  EXPECT_LT(gap, quantized ? 1e-3f : 1e-4f);
  EXPECT_GT(mx::var(expected).item<float>(), 1e-2f);
}

TEST(MuseSparkPublished, EqualsTheConverted) { expect_same_logits(false); }

TEST(MuseSparkPublished, ExpertsOfFourBits) { expect_same_logits(true); }

}  // namespace
}  // namespace mlxlm
