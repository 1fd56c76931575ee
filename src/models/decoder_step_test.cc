// On the CPU a decoder's step as one operation, of one row or of several, gives
// what its layers' operations give, bit for bit.
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "cache/batch_cache.h"
#include "kernels/seam.h"
#include "models/random_checkpoint.h"

namespace mlxlm {
namespace {

using nlohmann::json;

json config_of(const std::string& type) {
  return {{"model_type", type},
          {"hidden_size", 128},
          {"num_hidden_layers", 3},
          {"intermediate_size", 96},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"head_dim", 32},
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

// Tokens [1, L] that differ with `seed`.
mx::array tokens_like(int seed, int count) {
  return mx::reshape(
      mx::remainder(mx::multiply(mx::arange(count), mx::array(2 * seed + 1)),
                    mx::array(50)),
      {1, count});
}

void expect_same_content(const PromptCache& actual,
                         const PromptCache& expected) {
  std::vector<mx::array> a;
  std::vector<mx::array> b;
  for (const auto& cache : actual) cache->append_arrays_to(a);
  for (const auto& cache : expected) cache->append_arrays_to(b);
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(mx::array_equal(a[i], b[i]).item<bool>()) << i;
  }
}

struct SameModeAfter {
  const kernels::CpuMode mode = kernels::cpu_mode();
  ~SameModeAfter() { kernels::set_cpu_mode(mode); }
};

struct Family {
  const char* type;
  bool halves = false;  // weights in float16, and keys and values with them
};

class DecoderStep : public testing::TestWithParam<Family> {
 protected:
  void SetUp() override {
    if (std::string(kernels::table().name) != "cpu") {
      GTEST_SKIP() << "elsewhere the step is a kernel of its own";
    }
    auto checkpoint = random_checkpoint(config_of(GetParam().type), 1);
    if (GetParam().halves) {
      kernels::set_cpu_mode(kernels::CpuMode::fast);
      for (auto& [name, value] : checkpoint.weights) {
        value = mx::astype(value, mx::float16);
      }
    }
    model_ = make_model(checkpoint);
  }

  // A row that has read so many tokens, and the same for layer by layer.
  struct Row {
    PromptCache cache, by_layers;
    int seed;
  };
  Row row(int seed, int num_tokens) const {
    Row made{model_->make_cache(), model_->make_cache(), seed};
    if (num_tokens == 0) return made;
    for (const auto* cache : {&made.cache, &made.by_layers}) {
      model_->forward(tokens_like(seed, num_tokens), *cache);
    }
    return made;
  }

  // Logits [1, 1, V], which embeddings keep from being made in one operation.
  mx::array by_layers(const Row& row, const mx::array& token) const {
    return model_->forward_at({0}, token, row.by_layers, model_->embed(token));
  }

  // Reads the i-th token of all rows together; each gets what it gets alone.
  // Whether that was one operation.
  bool step(const std::vector<Row*>& rows, int i) const {
    std::vector<const PromptCache*> caches;
    std::vector<mx::array> tokens;
    std::vector<int> positions;
    for (const Row* row : rows) {
      positions.push_back(static_cast<int>(caches.size()));
      caches.push_back(&row->cache);
      tokens.push_back(mx::array({(7 * i + row->seed) % 50}, {1, 1}));
    }
    auto joined = join_rows(caches, std::vector<int>(rows.size(), 1));
    auto logits =
        model_->forward_at(positions, mx::concatenate(tokens, 1), joined);
    // That is on its way, while layers wait to be asked for.
    auto made = logits;
    if (std::string(GetParam().type) == "granite") made = made.inputs()[0];
    const bool at_once = made.status() != mx::array::Status::unscheduled;
    for (int at : positions) {
      auto own = mx::slice(logits, {0, at, 0}, {1, at + 1, logits.shape(2)});
      auto expected = by_layers(*rows[at], tokens[at]);
      EXPECT_TRUE(mx::array_equal(own, expected).item<bool>())
          << "row " << at << ", token " << i;
    }
    return at_once;
  }

  ModelPtr model_;
  SameModeAfter mode_;
};

TEST_P(DecoderStep, GivesTheBitsOfItsLayers) {
  // Up to where the caches grow, and a little beyond.
  auto one = row(0, 250);
  for (int i = 0; i < 10; ++i) {
    const auto token = mx::array({7 * i % 50}, {1, 1});
    const auto step = model_->forward(token, one.cache);
    ASSERT_TRUE(mx::array_equal(step, by_layers(one, token)).item<bool>()) << i;
  }
  EXPECT_EQ(one.cache[0]->offset(), 260);
  expect_same_content(one.cache, one.by_layers);
}

// Rows of all lengths, which grow at different times, join and leave.
TEST_P(DecoderStep, RowsOfABatchGetTheirOwnBits) {
  std::vector<Row> rows{row(0, 254), row(3, 2), row(5, 400), row(9, 129)};
  for (int i = 0; i < 6; ++i) {
    std::vector<Row*> together{&rows[0], &rows[2]};
    if (i > 0) together.push_back(&rows[1]);
    if (i > 1 && i < 5) together.insert(together.begin(), &rows[3]);
    EXPECT_TRUE(step(together, i)) << i;
  }
  EXPECT_EQ(rows[0].cache[0]->offset(), 260);
  EXPECT_EQ(rows[3].cache[0]->offset(), 132);
  for (const auto& row : rows) expect_same_content(row.cache, row.by_layers);
}

// What a step can't take goes layer by layer: rows that are new, shared or
// quantized, and chunks.
TEST_P(DecoderStep, OtherRowsComeBetweenSteps) {
  auto plain = row(0, 20);
  auto empty = row(1, 0);
  EXPECT_FALSE(step({&plain, &empty}, 0));
  EXPECT_TRUE(step({&plain, &empty}, 1));
  const auto fork = fork_prompt_cache(plain.cache);
  const auto fork_by_layers = fork_prompt_cache(plain.by_layers);
  EXPECT_FALSE(step({&plain, &empty}, 2));
  EXPECT_TRUE(step({&plain, &empty}, 3));
  expect_same_content(fork, fork_by_layers);
  expect_same_content(plain.cache, plain.by_layers);

  auto quantized = row(2, 30);
  for (auto* cache : {&quantized.cache, &quantized.by_layers}) {
    for (auto& layer : *cache) layer = layer->to_quantized({.group_size = 32});
  }
  EXPECT_FALSE(step({&plain, &quantized}, 4));
  EXPECT_TRUE(step({&plain}, 5));
}

INSTANTIATE_TEST_SUITE_P(Families,
                         DecoderStep,
                         testing::Values(Family{"llama"},
                                         Family{"qwen3"},
                                         Family{"granite"},
                                         Family{"llama", true},
                                         Family{"qwen3", true}));

// In exact mode, and where weights are float32, they stay float32.
TEST(KeysAndValues, AreHalvesInFastModesBesideHalfOrQuantizedWeights) {
  if (std::string(kernels::table().name) != "cpu") GTEST_SKIP();
  const SameModeAfter mode;
  auto floats = random_checkpoint(config_of("llama"), 1);
  auto halves = floats;
  for (auto& [name, value] : halves.weights) {
    value = mx::astype(value, mx::float16);
  }
  auto quantized = floats;
  const std::string embedding = "model.embed_tokens";
  auto parts = mx::quantize(floats.weights.at(embedding + ".weight"), 32, 8);
  quantized.weights.insert_or_assign(embedding + ".weight", parts[0]);
  quantized.weights.insert_or_assign(embedding + ".scales", parts[1]);
  quantized.weights.insert_or_assign(embedding + ".biases", parts[2]);
  quantized.quantized[embedding] = {.group_size = 32, .bits = 8};
  auto dtype_of = [](const Checkpoint& checkpoint, kernels::CpuMode mode) {
    kernels::set_cpu_mode(mode);
    const auto model = make_model(checkpoint);
    const auto cache = model->make_cache();
    model->forward(tokens_like(1, 3), cache);
    std::vector<mx::array> arrays;
    cache[0]->append_arrays_to(arrays);
    return arrays.at(0).dtype();
  };
  for (auto mode : {kernels::CpuMode::fast, kernels::CpuMode::fastest}) {
    EXPECT_EQ(dtype_of(floats, mode), mx::float32);
    EXPECT_EQ(dtype_of(halves, mode), mx::float16);
    EXPECT_EQ(dtype_of(quantized, mode), mx::float16);
  }
  EXPECT_EQ(dtype_of(halves, kernels::CpuMode::exact), mx::float32);
  EXPECT_EQ(dtype_of(quantized, kernels::CpuMode::exact), mx::float32);
}

}  // namespace
}  // namespace mlxlm
