// Weights that the CPU's kernels hold in a form of their own are held only
// there, also those of which a model uses the rows apart.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "kernels/seam.h"
#include "models/random_checkpoint.h"

namespace mlxlm {
namespace {

using nlohmann::json;

json config_of(const char* model_type, const json& more = json::object()) {
  return joined({{"model_type", model_type},
                 {"hidden_size", 64},
                 {"num_hidden_layers", 2},
                 {"intermediate_size", 96},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"head_dim", 16},
                 {"vocab_size", 40},
                 {"max_position_embeddings", 64},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", 1e4},
                 {"tie_word_embeddings", false}},
                more);
}

// Queries, keys, values and gates key head by key head.
json qwen3_next() {
  return config_of("qwen3_next",
                   joined(config_of_hybrid(), {{"num_experts", 0}}));
}

bool is_matrix(const std::string& name, const mx::array& value) {
  return (name.ends_with("proj.weight") && value.ndim() == 2) ||
         name.find("in_proj_") != std::string::npos;
}

Checkpoint quantized(Checkpoint checkpoint) {
  auto plain = checkpoint.weights;
  for (const auto& [name, value] : plain) {
    if (!is_matrix(name, value)) continue;
    const auto path = name.substr(0, name.rfind('.'));
    auto parts = mx::quantize(value, 32, 4);
    checkpoint.weights.insert_or_assign(path + ".weight", parts[0]);
    checkpoint.weights.insert_or_assign(path + ".scales", parts[1]);
    checkpoint.weights.insert_or_assign(path + ".biases", parts[2]);
    checkpoint.quantized[path] = {32, 4, "affine"};
  }
  return checkpoint;
}

void expect_let_go(const Checkpoint& checkpoint) {
  const auto model = make_model(checkpoint);
  int num_matrices = 0;
  for (auto& [name, value] : model->parameters()) {
    SCOPED_TRACE(name);
    const auto& before = checkpoint.weights.at(name);
    if (is_matrix(name, before)) {
      EXPECT_FALSE(value.is_available());
      ++num_matrices;
    } else if (name.find("norm") != std::string::npos) {
      EXPECT_TRUE(value.is_available());  // it has no other form
    }
    EXPECT_EQ(value.dtype(), before.dtype());
    EXPECT_TRUE(mx::array_equal(value, before).item<bool>());
  }
  EXPECT_GE(num_matrices, 6);
}

class PreparedWeights : public testing::TestWithParam<json> {};

TEST_P(PreparedWeights, LeavesOneOfEachMatrix) {
  if (kernels::table().prepare == nullptr) GTEST_SKIP() << "not on this device";
  const auto checkpoint = random_checkpoint(GetParam(), 1);
  expect_let_go(checkpoint);
  expect_let_go(quantized(checkpoint));
}

INSTANTIATE_TEST_SUITE_P(
    Models,
    PreparedWeights,
    testing::Values(config_of("llama"),
                    config_of("phi3"),  // queries, keys, values; gate, up
                    qwen3_next()),
    [](const auto& info) {
      return info.param.at("model_type").template get<std::string>();
    });

}  // namespace
}  // namespace mlxlm
