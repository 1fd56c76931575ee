// Checkpoints as published hold tensors under other names, joined, and those of
// eyes, ears and layers that predict several tokens: the same logits. What the
// oracle can write in the published layout is a variant in models_test.cc.
#include <cstdlib>
#include <filesystem>
#include <functional>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "models/make_model.h"
#include "models/weight_names.h"

namespace mlxlm::parity {
namespace {

namespace fs = std::filesystem;
namespace mx = mlx::core;

struct Layout {
  const char* name;
  const char* family;
  std::vector<WeightRule> renames;  // from the converted layout
  std::vector<const char*> unread;  // further tensors
  std::function<void(Checkpoint&)> join = {};
  const char* variant = "visible";
};

WeightRule rename(const char* from, const char* to) {
  return {WeightRule::Action::rename, from, to};
}

const auto kInside = rename("language_model.model.*", "model.language_model.*");
const auto kHeadOutside = rename("language_model.lm_head.*", "lm_head.*");
const std::vector<const char*> kEyes{"vision_tower.a.weight",
                                     "multi_modal_projector.a.weight"};
const std::vector<const char*> kEyesInside{
    "model.vision_tower.a.weight", "model.multi_modal_projector.a.weight"};
const std::vector<const char*> kSensesOfGemma{
    "model.vision_tower.a.weight",
    "model.multi_modal_projector.a.weight",
    "model.audio_tower.a.weight",
    "model.embed_audio.a.weight",
    "model.embed_vision.a.weight"};

// Tensors whose paths end in one of two suffixes become one along an axis.
void join(Checkpoint& checkpoint,
          const std::string& first,
          const std::string& second,
          const std::string& joined,
          int axis) {
  std::vector<std::string> paths;
  for (const auto& [name, value] : checkpoint.weights) {
    if (name.ends_with(first)) {
      paths.push_back(name.substr(0, name.size() - first.size()));
    }
  }
  EXPECT_FALSE(paths.empty());
  for (const auto& path : paths) {
    const auto a = take_weight(checkpoint, path + first);
    const auto b = take_weight(checkpoint, path + second);
    checkpoint.weights.insert_or_assign(path + joined,
                                        mx::concatenate({*a, *b}, axis));
  }
}

const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all{
      {"llava", "llava", {kInside, kHeadOutside}, kEyesInside},
      {"mistral3", "mistral3", {kInside, kHeadOutside}, kEyesInside},
      {"pixtral", "pixtral", {}, kEyes},
      {"gemma3", "gemma3", {}, kEyes},
      {"gemma3n", "gemma3n", {}, kSensesOfGemma},
      {"gemma4", "gemma4", {kInside}, kSensesOfGemma},
      {"gemma4_unified",
       "gemma4_unified",
       {kInside},
       {"model.vision_embedder.a.weight", "model.embed_audio.a.weight"}},
      // Layers that use the keys and values of earlier ones.
      {"gemma4_text",
       "gemma4_text",
       {},
       {"model.layers.3.self_attn.k_proj.weight",
        "model.layers.3.self_attn.v_proj.weight",
        "model.layers.3.self_attn.k_norm.weight",
        "model.layers.0.mlp.up_proj.input_max"}},
      {"lfm2_vl", "lfm2-vl", {}, kEyes},
      {"muse_glimmer_inside",
       "muse_glimmer",
       {rename("model.*", "model.language_model.*")},
       {"vision_tower.a.weight",
        "vision_adapter.a.weight",
        "vision_projection.a.weight"}},
      {"muse_glimmer_beside",
       "muse_glimmer",
       {rename("model.*", "language_model.model.*"),
        rename("lm_head.*", "language_model.lm_head.*")},
       {}},
      {"spark2_5",
       "spark2_5",
       {rename("model.embedding.*", "model.embed_tokens.*")},
       {"model.layers.0.self_attn.rotary_emb.inv_freq"}},
      {"qwen2_vl_old", "qwen2_vl", {}, {"visual.a.weight"}},
      {"qwen2_5_vl",
       "qwen2_5_vl",
       {kInside, kHeadOutside},
       {"visual.a.weight"}},
      {"qwen3_vl", "qwen3_vl", {}, {"visual.a.weight", "vision_tower.a"}},
      {"qwen3_vl_moe", "qwen3_vl_moe", {}, {"visual.a.weight"}},
      {"qwen3_5",
       "qwen3_5",
       {},
       {"model.visual.a.weight", "vision_tower.a.weight", "mtp.norm.weight"}},
      {"qwen3_5_moe",
       "qwen3_5_moe",
       {},
       {"model.visual.a.weight", "mtp.layers.0.a.weight"}},
      {"qwen3_next", "qwen3_next", {}, {"mtp.layers.0.a.weight"}},
      {"kimi_vl", "kimi_vl", {}, kEyes},
      {"kimi_k25",
       "kimi_k25",
       {},
       {"vision_tower.a", "vision_model.a", "mm_projector.a"}},
      {"kimi_k3",
       "kimi_k3",
       {},
       {"vision_tower.a", "vision_model.a", "language_model.model.mtp.a"}},
      {"kimi_linear", "kimi_linear", {}, {"model.mtp.a.weight"}},
      {"llama4",
       "llama4",
       {},
       {"vision_model.a.weight", "multi_modal_projector.a.weight"}},
      {"minimax_m3_vl",
       "minimax_m3_vl",
       {},
       {"vision_tower.a", "multi_modal_projector.a", "patch_merge_mlp.a"}},
      {"laguna", "laguna", {rename("*", "language_model.*")}, {}},
      {"ernie4_5_moe",
       "ernie4_5_moe",
       {},
       {"model.mtp_block.0.a.weight",
        "model.mtp_linear_proj.0.weight",
        "model.mtp_hidden_norm.0.weight",
        "model.mtp_emb_norm.0.weight"}},
      {"exaone_moe", "exaone_moe", {}, {"mtp.layers.0.a.weight"}},
      {"longcat_flash", "longcat_flash", {}, {"model.mtp.a.weight"}},
      {"mimo", "mimo", {}, {"model.mtp_layers.0.a.weight"}},
      {"mimo_v2_flash", "mimo_v2_flash", {}, {"model.mtp.a.weight"}},
      {"nemotron_h", "nemotron_h", {}, {"mtp.a.weight"}},
      {"bailing_hybrid", "bailing_hybrid", {}, {"model.layers.99.a.weight"}},
      {"bailing_moe_v3", "bailing_moe_v3", {}, {"model.layers.99.a.weight"}},
      {"deepseek_v3", "deepseek_v3", {}, {"model.layers.61.a.weight"}},
      {"deepseek_v32", "deepseek_v32", {}, {"model.layers.61.a.weight"}},
      {"glm4_moe", "glm4_moe", {}, {"model.layers.99.a.weight"}},
      {"glm4_moe_lite", "glm4_moe_lite", {}, {"model.layers.99.a.weight"}},
      {"kimi_k3_residuals",
       "kimi_k3",
       {rename("*_res_proj.weight", "*_res.proj_weight"),
        rename("*_res_norm.weight", "*_res.norm_weight")},
       {},
       {},
       "variant0"},
      {"step3p5",
       "step3p5",
       {},
       {"model.layers.99.a.weight", "model.layers.1.mtp.a.weight"}},
      {"internlm2",
       "internlm2",
       {},
       {"model.layers.0.attention.rope.inv_freq"}},
      {"internlm3",
       "internlm3",
       {},
       {"model.layers.0.attention.rope.inv_freq"}},
      {"lille_130m",
       "lille-130m",
       {},
       {"transformer.layers.0.attention.rotary_emb.inv_freq"}},
      {"talkie", "talkie", {}, {"model.rotary.inv_freq", "model.cos"}},
      // A dense layer's MLP where the others have their experts.
      {"minimax_m3_vl_dense",
       "minimax_m3_vl",
       {rename("language_model.model.layers.0.mlp.*",
               "language_model.model.layers.0.block_sparse_moe.*")},
       {}},
      {"apertus",
       "apertus",
       {},
       {},
       [](Checkpoint& checkpoint) {
         for (auto& [name, value] : checkpoint.weights) {
           if (value.ndim() == 0) value = mx::reshape(value, {1});
         }
       }},
      {"mistral4_fused",
       "mistral4",
       {rename("*.mlp.switch_mlp.down_proj.weight", "*.mlp.experts.down_proj")},
       {},
       [](Checkpoint& checkpoint) {
         join(checkpoint,
              "switch_mlp.gate_proj.weight",
              "switch_mlp.up_proj.weight",
              "experts.gate_up_proj",
              1);
       }}};
  return all;
}

mx::array logits_of(Checkpoint checkpoint) {
  const auto tokens = mx::array({5, 6, 7, 30, 2, 77}, {1, 6});
  return make_model(std::move(checkpoint))->forward(tokens);
}

void expect_same_logits(const fs::path& models, const Layout& layout) {
  SCOPED_TRACE(layout.name);
  const auto folder = models / layout.family / layout.variant;
  const auto converted = load_checkpoint(folder.string(), {});
  auto published = converted;
  if (layout.join) layout.join(published);
  for (const auto& rule : layout.renames) {
    auto before = published.weights;
    apply_rules(published, {rule});
    EXPECT_NE(before.size(),
              std::erase_if(before,
                            [&](const auto& entry) {
                              return published.weights.contains(entry.first);
                            }))
        << rule.pattern << " has nothing to rename";
  }
  for (const char* name : layout.unread) {
    EXPECT_TRUE(published.weights.emplace(name, mx::zeros({2, 2})).second);
  }
  EXPECT_TRUE(
      mx::array_equal(logits_of(converted), logits_of(published)).item<bool>());
}

TEST(Layouts, GiveTheSameLogits) {
  const char* models = std::getenv("MLXLM_PARITY_MODELS");
  if (models == nullptr) GTEST_SKIP() << "MLXLM_PARITY_MODELS isn't set";
  if (fs::exists(fs::path(models) / "SKIPPED")) GTEST_SKIP() << "no models";
  for (const auto& layout : layouts()) expect_same_logits(models, layout);
}

}  // namespace
}  // namespace mlxlm::parity
