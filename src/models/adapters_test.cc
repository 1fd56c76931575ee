// Adapted models against models whose weights have the adapter merged in.
#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "models/make_model.h"
#include "tests/support/model_writer.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using testing::HasSubstr;

constexpr float kScale = 0.7f;
constexpr int kRank = 3;

mx::array random(const mx::Shape& shape, int seed) {
  return mx::multiply(
      mx::random::normal(shape, mx::float32, 0, 1, mx::random::key(seed)),
      mx::array(0.2f));
}

void write_adapter(const std::filesystem::path& folder,
                   const std::string& kind,
                   const Weights& tensors) {
  json config{{"fine_tune_type", kind},
              {"num_layers", -1},
              {"lora_parameters",
               {{"rank", kRank}, {"scale", kScale}, {"dropout", 0.0}}}};
  write_text(folder / "adapter_config.json", config.dump());
  mx::save_safetensors((folder / "adapters.safetensors").string(), tensors);
}

Checkpoint tiny() {
  Checkpoint checkpoint;
  checkpoint.config = tiny_config();
  checkpoint.weights = tiny_weights();
  return checkpoint;
}

mx::array logits_of(Checkpoint checkpoint, const LoadOptions& options = {}) {
  auto model = make_model(std::move(checkpoint), options);
  auto logits = model->forward(mx::array({3, 1, 4, 1, 5}, {1, 5}));
  mx::eval(logits);
  return logits;
}

float difference(const mx::array& a, const mx::array& b) {
  return mx::max(mx::abs(mx::subtract(a, b))).item<float>();
}

// The adapter's tensors, and the same change made to the checkpoint.
Weights adapt(Checkpoint& checkpoint,
              const std::vector<std::string>& paths,
              bool dora) {
  Weights tensors;
  int seed = 1;
  for (const auto& path : paths) {
    auto& weight = checkpoint.weights.at(path + ".weight");
    auto a = random({weight.shape(1), kRank}, ++seed);
    auto b = random({kRank, weight.shape(0)}, ++seed);
    tensors.insert_or_assign(path + ".lora_a", a);
    tensors.insert_or_assign(path + ".lora_b", b);
    auto merged = mx::add(
        weight,
        mx::multiply(mx::transpose(mx::matmul(a, b)), mx::array(kScale)));
    if (dora) {
      auto magnitude = mx::abs(random({weight.shape(0)}, ++seed));
      tensors.insert_or_assign(path + ".m", magnitude);
      auto length = mx::sqrt(mx::sum(mx::square(merged), -1));
      merged = mx::multiply(merged,
                            mx::expand_dims(mx::divide(magnitude, length), 1));
    }
    weight = merged;
  }
  return tensors;
}

TEST(Adapters, LoraAndDoraEqualMergedWeights) {
  const std::vector<std::string> paths{"model.layers.0.self_attn.q_proj",
                                       "model.layers.1.self_attn.v_proj",
                                       "model.layers.1.mlp.down_proj"};
  for (bool dora : {false, true}) {
    auto merged = tiny();
    auto tensors = adapt(merged, paths, dora);
    TemporaryFolder folder;
    write_adapter(folder.path(), dora ? "dora" : "lora", tensors);
    auto actual = logits_of(tiny(), {.adapter_path = folder.path().string()});
    EXPECT_LT(difference(actual, logits_of(std::move(merged))), 1e-3f);
    EXPECT_GT(difference(actual, logits_of(tiny())), 1e-2f);
  }
}

TEST(Adapters, FullFineTuningReplacesWeights) {
  TemporaryFolder folder;
  auto changed = tiny();
  changed.weights.insert_or_assign("model.norm.weight", random({64}, 5));
  write_adapter(
      folder.path(),
      "full",
      {{"model.norm.weight", changed.weights.at("model.norm.weight")}});
  auto actual = logits_of(tiny(), {.adapter_path = folder.path().string()});
  EXPECT_EQ(difference(actual, logits_of(std::move(changed))), 0);
}

TEST(Adapters, TensorsThatDontFitAreListed) {
  TemporaryFolder folder;
  write_adapter(
      folder.path(),
      "lora",
      {{"model.layers.0.self_attn.q_proj.lora_a", random({63, kRank}, 1)},
       {"model.layers.0.self_attn.q_proj.lora_b", random({kRank, 64}, 2)},
       {"model.layers.9.self_attn.q_proj.lora_a", random({64, kRank}, 3)},
       {"model.layers.9.self_attn.q_proj.lora_b", random({kRank, 64}, 4)}});
  try {
    make_model(tiny(), {.adapter_path = folder.path().string()});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::weights);
    EXPECT_THAT(error.what(), HasSubstr("layers.0.self_attn.q_proj.lora_a"));
    EXPECT_THAT(error.what(), HasSubstr("layers.9.self_attn.q_proj"));
  }
}

}  // namespace
}  // namespace mlxlm
