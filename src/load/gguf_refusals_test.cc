// GGUF files that are refused.
#include <cstdlib>
#include <fstream>
#include <map>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mlxlm/error.h>

#include "load/gguf_test_models.h"

namespace mlxlm {
namespace {

using namespace gguf_test;
using testing::HasSubstr;

TEST(GgufRefusals, MissingTensorsAreAllNamed) {
  auto writer = metadata("llama");
  add_all(writer, {{kOuter[0]}, kAttention});
  auto error = error_of(writer);
  EXPECT_EQ(error.kind(), ErrorKind::weights);
  EXPECT_THAT(error.what(),
              HasSubstr("5 tensors are missing for the architecture llama "
                        "with 1 layers: output_norm.weight, "
                        "blk.0.ffn_norm.weight, blk.0.ffn_gate.weight, "
                        "blk.0.ffn_up.weight, blk.0.ffn_down.weight"));
}

TEST(GgufRefusals, UnknownTensorsAreRefusedUnlessAllowed) {
  auto writer = tiny_llama();
  for (const char* name : {"blk.1.attn_q.weight",
                           "blk.0.attn_q.scale",
                           "blk.x.attn_q.weight",
                           "blk.-1.attn_q.weight",
                           "blk.99999999999.attn_q.weight",
                           "other",
                           "v.patch.weight"}) {
    add_rows(writer, name, {8, 8});
  }
  auto error = error_of(writer);
  EXPECT_EQ(error.kind(), ErrorKind::weights);
  EXPECT_THAT(error.what(), HasSubstr("7 tensors don't belong"));
  EXPECT_THAT(error.what(), HasSubstr("'blk.1.attn_q.weight'"));
  LoadOptions options;
  options.strict = false;
  EXPECT_EQ(load(writer, options).weights.size(), 11u);
}

TEST(GgufRefusals, MoreThanTheMemoryIsRefused) {
  ::setenv("MLX_LM_MEMORY_LIMIT", "100", 1);
  auto error = error_of(tiny_llama());
  ::unsetenv("MLX_LM_MEMORY_LIMIT");
  EXPECT_EQ(error.kind(), ErrorKind::memory);
  EXPECT_THAT(error.what(), HasSubstr("model.gguf"));
}

TEST(GgufRefusals, OtherArchitecturesAreNamed) {
  auto error = error_of(metadata("mamba"));
  EXPECT_EQ(error.kind(), ErrorKind::unsupported);
  EXPECT_THAT(error.what(),
              HasSubstr("the architecture 'mamba' of this GGUF file isn't "
                        "supported; these are: llama, qwen2"));
  EXPECT_THAT(error_of(GgufWriter()).what(),
              HasSubstr("the metadata has no 'general.architecture'"));
}

TEST(GgufRefusals, OddMetadataIsRefused) {
  struct Case {
    const char* key;
    std::uint32_t value;
    const char* message;
  };
  for (const Case& test :
       {Case{"block_count", 4000000000u, "'llama.block_count' is 4000000000"},
        Case{"attention.head_count", 0, "'llama.attention.head_count' is 0"},
        Case{"attention.head_count",
             3,
             "has 8 rows, which can't be those of 3 heads"}}) {
    GgufWriter writer;
    std::map<std::string, std::uint32_t> values = {{"embedding_length", 8},
                                                   {"block_count", 1},
                                                   {"feed_forward_length", 12},
                                                   {"attention.head_count", 2}};
    values[test.key] = test.value;
    writer.add("general.architecture", "llama")
        .add("llama.attention.layer_norm_rms_epsilon", 0.5f);
    for (const auto& [key, value] : values) {
      writer.add("llama." + key, value);
    }
    add_all(writer, {kOuter, kAttention, kMlp});
    EXPECT_THAT(error_of(writer).what(), HasSubstr(test.message));
  }
  GgufWriter writer;
  writer.add("general.architecture", "llama").add("llama.embedding_length", 8u);
  EXPECT_THAT(error_of(writer).what(),
              HasSubstr("the metadata has no 'llama.block_count'"));
}

TEST(GgufRefusals, PerLayerValuesMustAgree) {
  auto with_heads = [](const std::vector<std::int32_t>& heads) {
    GgufWriter writer;
    writer.add("general.architecture", "llama")
        .add("llama.embedding_length", 8u)
        .add("llama.block_count", 1u)
        .add("llama.feed_forward_length", 12u)
        .add("llama.attention.head_count", 2u)
        .add("llama.attention.head_count_kv", heads)
        .add("llama.attention.layer_norm_rms_epsilon", 0.5f);
    add_all(writer, {kOuter, kAttention, kMlp});
    return writer;
  };
  EXPECT_EQ(load(with_heads({1, 1})).config["num_key_value_heads"], 1);
  auto error = error_of(with_heads({1, 2}));
  EXPECT_EQ(error.kind(), ErrorKind::unsupported);
  EXPECT_THAT(error.what(), HasSubstr("differs from layer to layer"));
}

// Whatever bytes change, loading gives a checkpoint or an Error.
TEST(GgufRefusals, DamagedFilesAreLoadedOrRefused) {
  auto writer = metadata("gemma2");
  writer.add("gemma2.attention.key_length", 4u)
      .add("gemma2.attention.sliding_window", 16u)
      .add("gemma2.rope.scaling.type", "yarn")
      .add("gemma2.rope.scaling.factor", 2.0f)
      .add("gemma2.rope.scaling.original_context_length", 32u);
  add_all(writer,
          {kOuter,
           kAttention,
           kMlp,
           {{"blk.0.post_attention_norm.weight", {8}},
            {"blk.0.post_ffw_norm.weight", {8}}}});
  std::string block(34, '\x11');
  writer.add_tensor("output.weight", {1, 32}, kQ80, block);
  const std::string original = writer.bytes();
  TemporaryFolder folder;
  std::mt19937 random(5);
  constexpr unsigned char kValues[] = {0, 1, 0x7f, 0x80, 0xff, 8, 46};
  int loaded = 0;
  for (int round = 0; round < 400; ++round) {
    std::string bytes = original;
    for (std::size_t i = 0, count = 1 + random() % 3; i < count; ++i) {
      bytes[random() % bytes.size()] =
          static_cast<char>(kValues[random() % std::size(kValues)]);
    }
    std::ofstream(folder / "model.gguf", std::ios::binary) << bytes;
    try {
      load_gguf_checkpoint(folder / "model.gguf");
      ++loaded;
    } catch (const Error& error) {
      ASSERT_NE(error.kind(), ErrorKind::internal) << error.what();
    }
  }
  EXPECT_GT(loaded, 0);
}

}  // namespace
}  // namespace mlxlm
