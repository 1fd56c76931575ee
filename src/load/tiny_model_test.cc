// The tests' model writer, checked against what the loader reads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "tests/support/model_writer.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

namespace mx = mlx::core;

TEST(TinyModel, IsTheSameForTheSameSeed) {
  auto a = tiny_weights({.seed = 3});
  auto b = tiny_weights({.seed = 3});
  auto c = tiny_weights({.seed = 4});
  const char* name = "model.layers.1.mlp.up_proj.weight";
  EXPECT_TRUE(mx::array_equal(a.at(name), b.at(name)).item<bool>());
  EXPECT_FALSE(mx::array_equal(a.at(name), c.at(name)).item<bool>());
  EXPECT_EQ(a.at(name).shape(), (mx::Shape{128, 64}));
}

TEST(TinyModel, WritesAFolder) {
  TemporaryFolder folder;
  write_tiny_model(folder.path(), {.quantize_bits = 4, .num_shards = 2});
  for (const char* name : {"config.json",
                           "model-00001-of-00002.safetensors",
                           "tokenizer.json",
                           "model.safetensors.index.json",
                           "tokenizer_config.json"}) {
    EXPECT_TRUE(std::filesystem::exists(folder / name)) << name;
  }
}

}  // namespace
}  // namespace mlxlm
