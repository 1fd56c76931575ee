#include "load/gguf_file.h"

#include <fstream>
#include <functional>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/gguf_writer.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::uint32_t kQ80 = 8;
constexpr std::uint32_t kArrayType = 9;

GgufWriter small_file() {
  GgufWriter writer;
  writer.add("general.architecture", "llama")
      .add("a.flag", true)
      .add("a.count", std::uint32_t{7})
      .add("a.negative", -3)
      .add("a.wide", std::uint64_t{1} << 40)
      .add("a.float", 0.5f)
      .add("a.double", 0.1)
      .add("a.strings", std::vector<std::string>{"x", "", "\xe4\xb8\xad"})
      .add("a.ints", std::vector<std::int32_t>{1, -2})
      .add("a.floats", std::vector<float>{0.25f})
      .add("a.flags", std::vector<bool>{true, false});
  writer.add_tensor("one", {2, 3}, {1, 2, 3, 4, 5, 6});
  writer.add_tensor("two", {1, 32}, kQ80, std::string(34, 'x'));
  return writer;
}

// The message of the error that reading these bytes gives; "" for none.
std::string error_of(const std::string& bytes) {
  static TemporaryFolder folder;
  std::ofstream(folder / "model.gguf", std::ios::binary) << bytes;
  try {
    GgufFile file(folder / "model.gguf");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::format);
    EXPECT_THAT(error.what(), HasSubstr("model.gguf: not a usable GGUF file"));
    return error.what();
  }
  return "";
}

std::string error_of(const GgufWriter& writer) {
  return error_of(writer.bytes());
}

TEST(GgufFile, ReadsMetadataAndTensors) {
  TemporaryFolder folder;
  small_file().write(folder / "model.gguf");
  GgufFile file(folder / "model.gguf");
  const auto& metadata = file.metadata();
  EXPECT_EQ(file.version(), 3u);
  EXPECT_EQ(metadata.required_string("general.architecture"), "llama");
  EXPECT_EQ(metadata.boolean("a.flag"), true);
  EXPECT_EQ(metadata.integer("a.count"), 7);
  EXPECT_EQ(metadata.integer("a.negative"), -3);
  EXPECT_EQ(metadata.integer("a.wide"), std::int64_t{1} << 40);
  EXPECT_EQ(metadata.number("a.float"), 0.5);
  EXPECT_EQ(metadata.number("a.double"), 0.1);
  EXPECT_EQ(metadata.number("a.count"), 7.0);
  EXPECT_THAT(*metadata.strings("a.strings"),
              ElementsAre("x", "", "\xe4\xb8\xad"));
  EXPECT_THAT(*metadata.integers("a.ints"), ElementsAre(1, -2));
  EXPECT_THAT(*metadata.floats("a.floats"), ElementsAre(0.25f));
  EXPECT_THAT(*metadata.booleans("a.flags"), ElementsAre(true, false));
  EXPECT_TRUE(metadata.is_array("a.ints"));
  EXPECT_FALSE(metadata.is_array("a.count"));
  EXPECT_EQ(metadata.keys().size(), 11u);
  EXPECT_EQ(metadata.string("absent"), std::nullopt);

  ASSERT_EQ(file.tensors().size(), 2u);
  const GgufTensor* one = file.find_tensor("one");
  ASSERT_NE(one, nullptr);
  EXPECT_EQ(one->type->name, "F32");
  EXPECT_THAT(one->shape, ElementsAre(2, 3));
  EXPECT_EQ(one->data.size(), 24u);
  EXPECT_EQ(file.find_tensor("two")->data[33], std::byte{'x'});
  EXPECT_EQ(file.find_tensor("three"), nullptr);
}

TEST(GgufFile, ValuesOfAnotherTypeAreRefused) {
  TemporaryFolder folder;
  small_file().write(folder / "model.gguf");
  GgufFile file(folder / "model.gguf");
  const auto& metadata = file.metadata();
  auto message_of = [&](const std::function<void()>& get) {
    try {
      get();
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_THAT(message_of([&] { metadata.string("a.count"); }),
              HasSubstr("'a.count' has the type uint32 where a string is "
                        "expected"));
  EXPECT_THAT(message_of([&] { metadata.integer("a.ints"); }),
              HasSubstr("'a.ints' has the type int32[] where an integer is "
                        "expected"));
  EXPECT_THAT(message_of([&] { metadata.integer("a.float"); }),
              HasSubstr("float32"));
  EXPECT_THAT(message_of([&] { metadata.strings("a.floats"); }),
              HasSubstr("float32[] where an array of strings"));
  EXPECT_THAT(message_of([&] { metadata.required_integer("b"); }),
              HasSubstr("the metadata has no 'b'"));
}

TEST(GgufFile, OtherFilesAndVersionsAreRefused) {
  auto writer = small_file();
  EXPECT_THAT(error_of(""), HasSubstr("the header takes 4 bytes"));
  writer.magic = "PK\3\4";
  EXPECT_THAT(error_of(writer),
              HasSubstr("it starts with 'PK\\x03\\x04', not 'GGUF'"));
  writer.magic = "tjgg";
  EXPECT_THAT(error_of(writer), HasSubstr("an older format"));
  writer.magic = "GGUF";
  for (auto [version, message] :
       {std::pair<std::uint32_t, std::string>{0, "version 0;"},
        {1, "version 1, whose counts have 32 bits"},
        {4, "version 4;"},
        {0x03000000, "big-endian"}}) {
    writer.version = version;
    EXPECT_THAT(error_of(writer), HasSubstr(message));
  }
  writer.version = 2;
  EXPECT_EQ(error_of(writer), "");
}

TEST(GgufFile, HugeCountsAreRefused) {
  for (std::uint64_t count :
       {std::uint64_t{1} << 63, ~std::uint64_t{0}, std::uint64_t{1000000000}}) {
    auto writer = small_file();
    writer.num_tensors = count;
    EXPECT_THAT(
        error_of(writer),
        HasSubstr("tensors: " + std::to_string(count) + " are claimed"));
    writer = small_file();
    writer.num_entries = count;
    EXPECT_THAT(error_of(writer),
                HasSubstr("metadata entries: " + std::to_string(count) +
                          " are claimed"));
    for (std::uint32_t type : {0u, 4u, 8u, 10u}) {
      writer = small_file();
      writer.add_raw("bad", kArrayType, raw_bytes(type) + raw_bytes(count));
      EXPECT_THAT(error_of(writer),
                  HasSubstr("the value of 'bad': " + std::to_string(count)));
    }
  }
}

TEST(GgufFile, StringsPastTheEndAreRefused) {
  constexpr std::uint32_t kString = 8;
  for (std::uint64_t length :
       {std::uint64_t{1} << 63, ~std::uint64_t{0}, std::uint64_t{1} << 32}) {
    EXPECT_THAT(
        error_of(small_file().add_raw("bad", kString, raw_bytes(length))),
        HasSubstr("the value of 'bad' takes " + std::to_string(length)));
    EXPECT_THAT(error_of(small_file().add_raw(
                    "bad",
                    kArrayType,
                    raw_bytes(kString) + raw_bytes(std::uint64_t{2}) +
                        gguf_string("fine") + raw_bytes(length))),
                HasSubstr("the value of 'bad' takes"));
  }
}

TEST(GgufFile, OddMetadataIsRefused) {
  EXPECT_THAT(error_of(small_file().add("a.count", std::uint32_t{1})),
              HasSubstr("the key 'a.count' appears twice"));
  EXPECT_THAT(error_of(small_file().add("", true)),
              HasSubstr("has 0 bytes; 1 to 65535"));
  EXPECT_THAT(error_of(small_file().add(std::string(65536, 'k'), true)),
              HasSubstr("has 65536 bytes"));
  EXPECT_THAT(error_of(small_file().add_raw("bad", 13, "x")),
              HasSubstr("the value of 'bad' has the unknown type 13"));
  std::string nested = raw_bytes(kArrayType) + raw_bytes(std::uint64_t{1});
  EXPECT_THAT(error_of(small_file().add_raw("bad", kArrayType, nested)),
              HasSubstr("an array of arrays"));
  EXPECT_THAT(
      error_of(small_file()
                   .add("bad\n\x01" + std::string(100, 'k'), std::uint32_t{1})
                   .add_raw("worse", 99, "")),
      HasSubstr("'worse'"));
}

TEST(GgufFile, AlignmentIsChecked) {
  for (std::uint32_t alignment : {0u, 3u, 48u, 0x80000000u}) {
    EXPECT_THAT(
        error_of(small_file().add("general.alignment", alignment)),
        HasSubstr("'general.alignment' is " + std::to_string(alignment)));
  }
  auto writer = small_file();
  writer.alignment = 64;
  writer.add("general.alignment", std::uint32_t{64});
  EXPECT_EQ(error_of(writer), "");
}

TEST(GgufFile, TensorsMustLieInTheFileAndApart) {
  auto add = [](std::uint64_t offset) {
    auto writer = small_file();
    writer.add_tensor("bad", {8}, std::vector<float>(8)).set_offset(offset);
    return error_of(writer);
  };
  EXPECT_EQ(add(96), "");
  EXPECT_THAT(add(100),
              HasSubstr("tensor 'bad' begins at 100, not a multiple "
                        "of the alignment 32"));
  EXPECT_THAT(add(128),
              HasSubstr("tensor 'bad' takes 32 bytes from 128, but "
                        "the file has 128 bytes of data"));
  EXPECT_THAT(add(std::uint64_t{1} << 63), HasSubstr("beyond the end"));
  EXPECT_THAT(add(~std::uint64_t{31}), HasSubstr("beyond the end"));
  EXPECT_THAT(add(0), HasSubstr("overlap"));
  EXPECT_THAT(add(32), HasSubstr("tensors 'two' and 'bad' overlap"));
}

TEST(GgufFile, OddTensorsAreRefused) {
  auto add = [](std::string_view name,
                const std::vector<std::uint64_t>& shape,
                std::uint32_t type) {
    return error_of(
        small_file().add_tensor(name, shape, type, std::string(64, 'x')));
  };
  std::uint64_t huge = std::uint64_t{1} << 31;
  EXPECT_THAT(add("one", {8}, 0), HasSubstr("tensor 'one' appears twice"));
  EXPECT_THAT(add("", {8}, 0), HasSubstr("has 0 bytes"));
  EXPECT_THAT(add(std::string(1025, 'n'), {8}, 0), HasSubstr("1025 bytes"));
  EXPECT_THAT(add("bad", {}, 0), HasSubstr("has 0 dimensions"));
  EXPECT_THAT(add("bad", {1, 1, 1, 1, 8}, 0), HasSubstr("has 5 dimensions"));
  EXPECT_THAT(add("bad", {8, 0}, 0), HasSubstr("has a dimension of 0"));
  EXPECT_THAT(add("bad", {huge}, 0),
              HasSubstr("has a dimension of 2147483648"));
  EXPECT_THAT(add("bad", {huge - 1, huge - 1, huge - 1}, 0),
              HasSubstr("has a dimension of"));
  EXPECT_THAT(add("bad", {huge - 1, huge - 1}, 28),
              HasSubstr("more than 2^64 bytes"));
  EXPECT_THAT(add("bad", {1 << 20, 1 << 20}, 0), HasSubstr("beyond the end"));
  EXPECT_THAT(add("bad", {8}, 99), HasSubstr("has the unknown type 99"));
  EXPECT_THAT(add("bad", {2, 48}, kQ80),
              HasSubstr("rows of 48 values, not a multiple of the 32 in a "
                        "block of Q8_0"));
}

TEST(GgufFile, CutShortAnywhereIsRefused) {
  std::string bytes = small_file().bytes();
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_NE(error_of(bytes.substr(0, length)), "") << length;
  }
  EXPECT_EQ(error_of(bytes + "trailing"), "");
}

// Whatever bytes change, reading gives a file or an Error{format}.
TEST(GgufFile, DamagedFilesAreReadOrRefused) {
  TemporaryFolder folder;
  const std::string original = small_file().bytes();
  std::mt19937 random(1);
  auto below = [&](std::size_t limit) { return random() % limit; };
  constexpr unsigned char kValues[] = {0, 1, 0x7f, 0x80, 0xff, 9, 32};
  for (int round = 0; round < 500; ++round) {
    std::string bytes = original;
    for (std::size_t i = 0, count = 1 + below(4); i < count; ++i) {
      bytes[below(bytes.size())] =
          static_cast<char>(kValues[below(std::size(kValues))]);
    }
    std::ofstream(folder / "model.gguf", std::ios::binary) << bytes;
    try {
      GgufFile file(folder / "model.gguf");
      for (auto key : file.metadata().keys()) {
        if (file.metadata().is_array(key)) {
          file.metadata().strings(key);
        } else {
          file.metadata().number(key);
        }
      }
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), ErrorKind::format);
    }
  }
}

}  // namespace
}  // namespace mlxlm
