// Models in several GGUF files.
#include "load/gguf_parts.h"

#include <filesystem>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mlxlm/error.h>

#include "load/gguf_test_models.h"

namespace mlxlm {
namespace {

using namespace gguf_test;
using testing::HasSubstr;

// Two parts: the outer tensors in the first, the layer in the second.
class SplitModel : public testing::Test {
 protected:
  SplitModel() : first_(metadata("llama")) {
    add_all(first_, {kOuter});
    add_all(second_, {kAttention, kMlp});
  }

  static void add_split(GgufWriter& writer,
                        std::uint32_t number,
                        std::uint32_t count,
                        std::int32_t tensors) {
    writer.add("split.no", number)
        .add("split.count", count)
        .add("split.tensors.count", tensors);
  }

  std::filesystem::path name_of(int number) const {
    return folder_ / ("m-0000" + std::to_string(number) + "-of-00002.gguf");
  }

  Error load_error(int number) {
    return error_of([&] { load_gguf_checkpoint(name_of(number)); });
  }

  TemporaryFolder folder_;
  GgufWriter first_;
  GgufWriter second_;
};

TEST_F(SplitModel, AnyPartLoadsTheWhole) {
  add_split(first_, 0, 2, 11);
  add_split(second_, 1, 2, 11);
  first_.write(name_of(1));
  EXPECT_THAT(load_error(1).what(),
              HasSubstr("m-00002-of-00002.gguf is "
                        "missing"));
  second_.write(name_of(2));
  for (int number : {1, 2}) {
    auto checkpoint = load_gguf_checkpoint(name_of(number));
    EXPECT_EQ(checkpoint.weights.size(), 11u);
    EXPECT_THAT(checkpoint.source, HasSubstr("m-00001-of-00002.gguf"));
  }
}

TEST_F(SplitModel, PartsThatDontBelongTogetherAreRefused) {
  add_split(first_, 0, 2, 12);
  first_.write(name_of(1));
  add_split(second_, 1, 2, 12);
  second_.write(name_of(2));
  EXPECT_THAT(load_error(1).what(),
              HasSubstr("'split.tensors.count' is 12, but the parts have 11"));
  GgufWriter other;
  add_all(other, {kAttention, {kOuter[0]}});
  add_split(other, 1, 2, 12);
  other.write(name_of(2));
  EXPECT_THAT(load_error(1).what(),
              HasSubstr("'token_embd.weight' is in an earlier part"));
  GgufWriter third;
  add_split(third, 1, 3, 12);
  third.write(name_of(2));
  EXPECT_THAT(load_error(1).what(), HasSubstr("its metadata disagrees"));
  first_.write(folder_ / "renamed.gguf");
  EXPECT_THAT(
      error_of([&] { load_gguf_checkpoint(folder_ / "renamed.gguf"); }).what(),
      HasSubstr("its name must end in NUMBER-of-COUNT as "
                "-00001-of-00002.gguf"));
  GgufWriter many = metadata("llama");
  many.add("split.count", 4000000000u);
  many.write(folder_ / "many.gguf");
  EXPECT_THAT(
      error_of([&] { load_gguf_checkpoint(folder_ / "many.gguf"); }).what(),
      HasSubstr("'split.count' is 4000000000"));
}

}  // namespace
}  // namespace mlxlm
