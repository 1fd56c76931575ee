#include "load/gguf_blocks.h"

#include <cmath>
#include <cstring>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "load/gguf_repack.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/test_data.h"

namespace mlxlm {
namespace {

using testing::HasSubstr;

std::string from_hex(const std::string& text) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

// Random blocks of one format and the float32 values that the gguf Python
// package gives for them.
struct Golden {
  std::uint32_t type;
  std::string blocks;
  std::vector<float> values;
};

std::vector<std::pair<std::string, Golden>> goldens() {
  auto json = nlohmann::json::parse(read_file(test_data("gguf_blocks.json")));
  std::vector<std::pair<std::string, Golden>> out;
  for (std::uint32_t id = 0; id < 64; ++id) {
    const GgufType* type = find_gguf_type(id);
    if (type == nullptr || !json.contains(type->name)) {
      continue;
    }
    const auto& entry = json.at(std::string(type->name));
    Golden golden{id, from_hex(entry.at("blocks")), {}};
    std::string values = from_hex(entry.at("values"));
    golden.values.resize(values.size() / sizeof(float));
    std::memcpy(golden.values.data(), values.data(), values.size());
    out.emplace_back(type->name, std::move(golden));
  }
  return out;
}

// A file with one tensor "t" that has a row per block.
class OneTensor {
 public:
  OneTensor(std::uint32_t type, const std::string& blocks)
      : file_([&] {
          const GgufType* info = find_gguf_type(type);
          GgufWriter writer;
          writer.add_tensor(
              "t",
              {blocks.size() / info->block_bytes, info->block_elements},
              type,
              blocks);
          writer.write(folder_ / "t.gguf");
          return folder_ / "t.gguf";
        }()) {}

  const GgufFile& file() const { return file_; }
  const GgufTensor& tensor() const { return file_.tensors()[0]; }

 private:
  TemporaryFolder folder_;
  GgufFile file_;
};

std::vector<float> values_of(mx::array array) {
  array = mx::contiguous(array);
  array.eval();
  return {array.data<float>(), array.data<float>() + array.size()};
}

mx::array dequantized(const GgufMatrix& matrix) {
  return mx::dequantize(matrix.weight,
                        matrix.scales,
                        matrix.biases,
                        matrix.quantization.group_size,
                        matrix.quantization.bits,
                        matrix.quantization.mode);
}

TEST(GgufBlocks, EveryFormatGivesTheReferencesValues) {
  auto all = goldens();
  EXPECT_EQ(all.size(), 13u);
  for (const auto& [name, golden] : all) {
    OneTensor file(golden.type, golden.blocks);
    EXPECT_EQ(values_of(dense_tensor(file.file(), file.tensor())),
              golden.values)
        << name;
  }
}

TEST(GgufBlocks, RepackedFormatsKeepTheirValues) {
  for (const auto& [name, golden] : goldens()) {
    OneTensor file(golden.type, golden.blocks);
    auto matrix = repack_tensor(file.file(), file.tensor());
    auto values = values_of(dequantized(matrix));
    EXPECT_EQ(converted_bytes(file.tensor()),
              matrix.weight.nbytes() + matrix.scales.nbytes() +
                  matrix.biases.nbytes());
    if (name != "Q2_K" && name != "Q6_K") {
      EXPECT_EQ(values, golden.values) << name;
      EXPECT_EQ(matrix.loss.squared_error, 0) << name;
      continue;
    }
    // Fitted at 8 bits: within half a step of the group's range.
    ASSERT_EQ(values.size(), golden.values.size());
    double largest = 0;
    for (std::size_t group = 0; group < values.size(); group += 32) {
      auto begin = golden.values.begin() + static_cast<std::ptrdiff_t>(group);
      auto [low, high] = std::minmax_element(begin, begin + 32);
      float allowed = (*high - *low) / 255 * 0.51f;
      for (std::size_t i = group; i < group + 32; ++i) {
        EXPECT_NEAR(values[i], golden.values[i], 1.5f * allowed) << name;
        largest =
            std::max<double>(largest,
                             std::abs(values[i] - golden.values[i]) /
                                 std::max(std::abs(*low), std::abs(*high)));
      }
    }
    EXPECT_NEAR(matrix.loss.largest, largest, 1e-6) << name;
    EXPECT_LT(matrix.loss.relative(), 0.005) << name;
    EXPECT_GT(matrix.loss.relative(), 0) << name;
  }
}

TEST(GgufBlocks, RowsCanBeReordered) {
  for (const auto& [name, golden] : goldens()) {
    if (golden.values.size() != 96) {
      continue;  // one row
    }
    OneTensor file(golden.type, golden.blocks);
    const std::vector<int> order = {2, 0, 1};
    std::vector<float> expected;
    for (int row : order) {
      auto begin = golden.values.begin() + row * 32;
      expected.insert(expected.end(), begin, begin + 32);
    }
    EXPECT_EQ(values_of(dense_tensor(file.file(), file.tensor(), order)),
              expected);
    EXPECT_EQ(values_of(dequantized(
                  repack_tensor(file.file(), file.tensor(), order))),
              expected);
  }
}

// Two halves of a Q6_K group with equal steps fit one grid.
TEST(GgufBlocks, EqualHalvesAreMergedExactly) {
  constexpr std::uint32_t kQ6K = 14;
  for (const auto& [name, golden] : goldens()) {
    if (golden.type != kQ6K) {
      continue;
    }
    std::string blocks = golden.blocks;
    for (std::size_t i = 0; i < 16; ++i) {
      blocks[192 + i] = static_cast<char>(5 - static_cast<int>(i / 2) * 3);
    }
    OneTensor file(golden.type, blocks);
    auto matrix = repack_tensor(file.file(), file.tensor());
    EXPECT_EQ(values_of(dequantized(matrix)),
              values_of(dense_tensor(file.file(), file.tensor())));
    EXPECT_EQ(matrix.loss.squared_error, 0);
  }
}

TEST(GgufBlocks, ScalesThatAreNoNumbersAreRefused) {
  for (const auto& [name, golden] : goldens()) {
    if (name == "MXFP4") {
      continue;  // its scales are always finite
    }
    const GgufType* type = find_gguf_type(golden.type);
    std::string blocks(type->block_bytes, '\xff');  // halves are no numbers
    OneTensor file(golden.type, blocks);
    try {
      repack_tensor(file.file(), file.tensor());
      FAIL() << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::format);
      EXPECT_THAT(error.what(), HasSubstr("tensor 't' has a scale that isn't"));
    }
  }
}

TEST(GgufBlocks, DenseTypesAreKept) {
  OneTensor half(1, std::string("\x00\x3c", 2));  // 1.0
  EXPECT_EQ(dense_tensor(half.file(), half.tensor()).dtype(), mx::float16);
  OneTensor brain(30, std::string("\x80\x3f", 2));
  auto array = dense_tensor(brain.file(), brain.tensor());
  EXPECT_EQ(array.dtype(), mx::bfloat16);
  EXPECT_EQ(values_of(mx::astype(array, mx::float32)), std::vector<float>{1});
  EXPECT_FALSE(is_quantized(brain.tensor()));
}

TEST(GgufBlocks, OtherFormatsAreNamed) {
  OneTensor file(21, std::string(110, 'x'));
  EXPECT_FALSE(is_quantized(file.tensor()));
  try {
    dense_tensor(file.file(), file.tensor());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::unsupported);
    EXPECT_THAT(error.what(), HasSubstr("tensor 't' has the type IQ3_S"));
  }
}

}  // namespace
}  // namespace mlxlm
