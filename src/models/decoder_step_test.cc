// On the CPU a decoder's step as one operation gives what its layers'
// operations give, bit for bit.
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "kernels/seam.h"
#include "models/random_checkpoint.h"

namespace mlxlm {
namespace {

using nlohmann::json;

json config_of(const std::string& type) {
  return {{"model_type", type},
          {"hidden_size", 64},
          {"num_hidden_layers", 3},
          {"intermediate_size", 96},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"head_dim", 16},
          {"rms_norm_eps", 1e-5},
          {"vocab_size", 50},
          {"rope_theta", 10000.0},
          {"max_position_embeddings", 1024},
          {"tie_word_embeddings", true},
          {"attention_bias", type == "granite"},
          {"mlp_bias", false},
          {"attention_multiplier", 0.2},
          {"embedding_multiplier", 3.0},
          {"residual_multiplier", 0.5},
          {"logits_scaling", 2.0}};
}

class DecoderStep : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (std::string(kernels::table().name) != "cpu") {
      GTEST_SKIP() << "elsewhere the step is a kernel of its own";
    }
  }
};

TEST_P(DecoderStep, GivesTheBitsOfItsLayers) {
  auto model = make_model(random_checkpoint(config_of(GetParam()), 1));
  auto by_steps = model->make_cache();
  auto by_layers = model->make_cache();
  // Up to where the caches grow, and a little beyond.
  auto prompt =
      mx::reshape(mx::remainder(mx::arange(250), mx::array(50)), {1, 250});
  model->forward(prompt, by_steps);
  model->forward(prompt, by_layers);
  for (int i = 0; i < 10; ++i) {
    const auto token = mx::array({7 * i % 50}, {1, 1});
    const auto step = model->forward(token, by_steps);
    const auto layers = model->forward_at({0}, token, by_layers);
    ASSERT_TRUE(mx::array_equal(step, layers).item<bool>()) << i;
  }
  EXPECT_EQ(by_steps[0]->offset(), 260);
  std::vector<mx::array> a;
  std::vector<mx::array> b;
  for (const auto& cache : by_steps) cache->append_arrays_to(a);
  for (const auto& cache : by_layers) cache->append_arrays_to(b);
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(mx::array_equal(a[i], b[i]).item<bool>()) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Families,
                         DecoderStep,
                         testing::Values("llama", "qwen3", "granite"));

}  // namespace
}  // namespace mlxlm
