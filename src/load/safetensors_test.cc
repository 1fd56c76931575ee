#include "load/safetensors.h"

#include <cstdint>
#include <fstream>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mlx/mlx.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>

#include <mlxlm/error.h>

#include "tests/support/model_writer.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

std::string error_of(std::string_view header, std::uint64_t data_bytes) {
  try {
    parse_safetensors_header(header, data_bytes, "m.safetensors");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::format);
    EXPECT_THAT(error.what(), HasSubstr("m.safetensors"));
    return error.what();
  }
  return "no error";
}

std::string one(const std::string& fields) {
  return "{\"a\":{" + fields + "}}";
}

std::string file_of(const std::string& header, std::size_t data_bytes) {
  std::string file;
  for (int i = 0; i < 8; ++i) {
    file += static_cast<char>(std::uint64_t{header.size()} >> (8 * i));
  }
  return file + header + std::string(data_bytes, '\0');
}

TEST(SafetensorsHeader, ReadsAValidOne) {
  auto header = parse_safetensors_header(
      R"({"__metadata__":{"format":"pt"},
          "b":{"dtype":"F16","shape":[2,3],"data_offsets":[4,16]},
          "a":{"dtype":"F32","shape":[],"data_offsets":[0,4],"more":[{"x":1}]},
          "e":{"dtype":"I64","shape":[0,7],"data_offsets":[16,16]},
          "f":{"dtype":"F4","shape":[4],"data_offsets":[16,18]}}   )",
      18,
      "m");
  ASSERT_EQ(header.tensors.size(), 4u);
  EXPECT_EQ(header.tensors[0].name, "a");
  EXPECT_EQ(header.tensors[1].dtype, "F16");
  EXPECT_EQ(header.tensors[1].shape, (std::vector<std::uint64_t>{2, 3}));
  EXPECT_EQ(header.metadata.at("format"), "pt");
  EXPECT_TRUE(parse_safetensors_header("{}", 0, "m").tensors.empty());
  EXPECT_TRUE(parse_safetensors_header(R"({"__metadata__":null})", 0, "m")
                  .tensors.empty());
}

TEST(SafetensorsHeader, RefusesOverlapsHolesAndWrongEnds) {
  std::string a = R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]})";
  EXPECT_THAT(
      error_of("{" + a +
                   R"(,"b":{"dtype":"U8","shape":[4],)"
                   R"("data_offsets":[2,6]}})",
               6),
      HasSubstr("tensor \"b\" begins at byte 2 of the data instead of where "
                "\"a\" ends, at byte 4: they overlap"));
  EXPECT_THAT(error_of("{" + a +
                           R"(,"b":{"dtype":"U8","shape":[4],)"
                           R"("data_offsets":[6,10]}})",
                       10),
              HasSubstr("there is a hole"));
  EXPECT_THAT(
      error_of(one(R"("dtype":"U8","shape":[4],"data_offsets":[1,5])"), 5),
      HasSubstr("begins at byte 1 of the data instead of at byte 0"));
  EXPECT_THAT(error_of("{" + a + "}", 3),
              AllOf(HasSubstr("cut short"),
                    HasSubstr("\"a\" ends at byte 4"),
                    HasSubstr("of which 3")));
  EXPECT_THAT(error_of("{" + a + "}", 9),
              HasSubstr("5 bytes follow the last tensor"));
  // Two tensors over the same bytes.
  EXPECT_THAT(error_of("{" + a +
                           R"(,"b":{"dtype":"U8","shape":[4],)"
                           R"("data_offsets":[0,4]}})",
                       4),
              HasSubstr("they overlap"));
}

TEST(SafetensorsHeader, RefusesShapesThatDontFit) {
  EXPECT_THAT(
      error_of(one(R"("dtype":"F32","shape":[2,2],"data_offsets":[0,8])"), 8),
      HasSubstr("shape [2, 2] of F32 takes 16 bytes, but data_offsets [0, 8] "
                "hold 8"));
  EXPECT_THAT(
      error_of(one(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), 4),
      HasSubstr("shape must hold non-negative integers, not -1"));
  EXPECT_THAT(
      error_of(one(R"("dtype":"F32","shape":[1.5],"data_offsets":[0,4])"), 4),
      HasSubstr("not 1.5"));
  EXPECT_THAT(error_of(one(R"("dtype":"F32","shape":[4294967296,4294967296],)"
                           R"("data_offsets":[0,0])"),
                       0),
              HasSubstr("[4294967296, 4294967296] of F32 overflows 64 bits"));
  EXPECT_THAT(error_of(one(R"("dtype":"F32","shape":[18446744073709551616],)"
                           R"("data_offsets":[0,0])"),
                       0),
              HasSubstr("shape must hold non-negative integers"));
  EXPECT_THAT(error_of(one(R"("dtype":"U8","shape":[0,3000000000],)"
                           R"("data_offsets":[0,0])"),
                       0),
              HasSubstr("dimension 3000000000 is larger than MLX"));
  EXPECT_THAT(
      error_of(one(R"("dtype":"F4","shape":[3],"data_offsets":[0,1])"), 1),
      HasSubstr("whole byte"));
  EXPECT_THAT(
      error_of(one(R"("dtype":"U8","shape":[1],"data_offsets":[5,4])"), 5),
      HasSubstr("end before they begin"));
  std::string many = "1";
  for (int i = 0; i < 40; ++i) {
    many += ",1";
  }
  EXPECT_THAT(error_of(one(R"("dtype":"U8","data_offsets":[0,1],"shape":[)" +
                           many + "]"),
                       1),
              HasSubstr("more than 32 dimensions"));
}

TEST(SafetensorsHeader, RefusesFieldsOfTheWrongKind) {
  EXPECT_THAT(error_of("[1]", 0), HasSubstr("must begin with '{'"));
  EXPECT_THAT(error_of("", 0), HasSubstr("must begin with '{'"));
  EXPECT_THAT(error_of(" {}", 0), HasSubstr("must begin with '{'"));
  EXPECT_THAT(error_of("{", 0), HasSubstr("not valid JSON at byte"));
  EXPECT_THAT(error_of("{} x", 0), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of("{\"\xff\":{}}", 0), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of(R"({"a":3})", 0), HasSubstr("must be an object, not 3"));
  EXPECT_THAT(error_of(R"({"a":[]})", 0),
              HasSubstr("must be an object, not a list"));
  EXPECT_THAT(error_of(R"({"a":null})", 0), HasSubstr("not null"));
  EXPECT_THAT(error_of(R"({"__metadata__":{"x":1}})", 0),
              HasSubstr("__metadata__: \"x\" must be text, not 1"));
  EXPECT_THAT(error_of(R"({"__metadata__":{"x":{}}})", 0),
              HasSubstr("must be text, not an object"));
  EXPECT_THAT(error_of(R"({"__metadata__":"x"})", 0),
              HasSubstr("__metadata__ must be an object"));
  EXPECT_THAT(
      error_of(one(R"("dtype":"F33","shape":[1],"data_offsets":[0,4])"), 4),
      HasSubstr("dtype \"F33\" is unknown (did you mean F32?)"));
  EXPECT_THAT(error_of(one(R"("dtype":7,"shape":[1],"data_offsets":[0,4])"), 4),
              HasSubstr("dtype must be text, not 7"));
  EXPECT_THAT(
      error_of(one(R"("dtype":"F32","shape":4,"data_offsets":[0,4])"), 4),
      HasSubstr("shape must be a list, not 4"));
  EXPECT_THAT(
      error_of(one(R"("dtype":"F32","shape":[[1]],"data_offsets":[0,4])"), 4),
      HasSubstr("not a list"));
  EXPECT_THAT(
      error_of(one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,8])"), 4),
      HasSubstr("data_offsets must be two"));
  EXPECT_THAT(
      error_of(one(R"("dtype":"F32","shape":[1],"data_offsets":[0])"), 4),
      HasSubstr("data_offsets must be two"));
  EXPECT_THAT(
      error_of(one(R"("dtype":"F32","shape":[1],"data_offsets":[-4,0])"), 4),
      HasSubstr("not -4"));
  EXPECT_THAT(error_of(one(R"("shape":[1],"data_offsets":[0,4])"), 4),
              HasSubstr("dtype is missing"));
}

TEST(SafetensorsHeader, RefusesKeysThatAppearTwice) {
  std::string a = R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  EXPECT_THAT(error_of("{" + a + "," + a + "}", 0),
              HasSubstr("the key \"a\" appears twice"));
  EXPECT_THAT(error_of(one(R"("dtype":"U8","dtype":"U8","shape":[0],)"
                           R"("data_offsets":[0,0])"),
                       0),
              HasSubstr("the key \"dtype\" appears twice in \"a\""));
  EXPECT_THAT(error_of(R"({"__metadata__":{"x":"1","x":"2"}})", 0),
              HasSubstr("appears twice in \"__metadata__\""));
}

TEST(SafetensorsHeader, DepthIsLimited) {
  std::string deep(1000, '[');
  EXPECT_THAT(error_of(one("\"x\":" + deep), 0), HasSubstr("levels deep"));
  EXPECT_THAT(error_of(one("\"shape\":" + deep), 0),
              HasSubstr("non-negative integers, not a list"));
}

TEST(SafetensorsFile, FaultsOfTheFileItself) {
  TemporaryFolder folder;
  auto error = [&](const std::string& content) -> std::string {
    write_text(folder / "m.safetensors", content);
    try {
      read_safetensors_header(folder / "m.safetensors");
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_THAT(error(""), HasSubstr("it has 0 bytes"));
  EXPECT_THAT(error("1234567"), HasSubstr("it has 7 bytes"));
  EXPECT_THAT(error(std::string("\x40\0\0\0\0\0\0\0{}", 10)),
              HasSubstr("cut short"));
  EXPECT_THAT(error(std::string(8, '\xff')),
              HasSubstr("18446744073709551615 bytes, more than the 100000000"));
  EXPECT_THAT(error("version https://git-lfs.github.com/spec/v1\n"),
              HasSubstr("Git LFS pointer"));
  EXPECT_THAT(error(file_of("{}", 3)), HasSubstr("3 bytes follow"));
  EXPECT_EQ(error(file_of("{}", 0)), "no error");
  EXPECT_THROW(read_safetensors_header(folder / "none"), Error);
  EXPECT_THROW(read_safetensors_header(folder.path()), Error);
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_THROW(read_safetensors_header(folder / "pipe"), Error);
}

TEST(SafetensorsFile, LoadsEveryDtypeMlxKnows) {
  TemporaryFolder folder;
  std::string header =
      R"({"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]},
          "b":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[2,3]},
          "c":{"dtype":"BOOL","shape":[1],"data_offsets":[3,4]},
          "d":{"dtype":"BF16","shape":[1,1],"data_offsets":[4,6]},
          "e":{"dtype":"I64","shape":[1],"data_offsets":[6,14]}})";
  write_text(folder / "m.safetensors", file_of(header, 14));
  Weights weights = load_safetensors(folder / "m.safetensors");
  EXPECT_EQ(weights.at("a").dtype(), mx::uint8);
  EXPECT_EQ(weights.at("b").dtype(), mx::uint8);
  EXPECT_EQ(weights.at("d").dtype(), mx::bfloat16);
  EXPECT_EQ(weights.at("d").shape(), (mx::Shape{1, 1}));
  EXPECT_EQ(weights.at("e").item<std::int64_t>(), 0);
}

TEST(SafetensorsFile, ADtypeMlxLacksIsNamed) {
  TemporaryFolder folder;
  write_text(
      folder / "m.safetensors",
      file_of(one(R"("dtype":"F64","shape":[1],"data_offsets":[0,8])"), 8));
  try {
    load_safetensors(folder / "m.safetensors");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::unsupported);
    EXPECT_THAT(error.what(), HasSubstr("tensor \"a\" has dtype F64"));
  }
}

TEST(SafetensorsFile, WhatMlxWritesPasses) {
  TemporaryFolder folder;
  write_tiny_model(folder.path(), {.quantize_bits = 4});
  Weights weights = load_safetensors(folder / "model.safetensors");
  EXPECT_EQ(weights.size(), tiny_weights({.quantize_bits = 4}).size());
}

// A header that holds as much of the unusual as the rules allow.
std::string unusual_header(std::mt19937& random, std::uint64_t& data_bytes) {
  const std::pair<const char*, int> dtypes[] = {{"BOOL", 1},
                                                {"U8", 1},
                                                {"F8_E4M3", 1},
                                                {"F8_E8M0", 1},
                                                {"I16", 2},
                                                {"F16", 2},
                                                {"BF16", 2},
                                                {"F32", 4},
                                                {"I64", 8},
                                                {"C64", 8}};
  const char* names[] = {"", "a.b", "\\u0000", "\\u00e9", "\\n\\\"", " ", "é"};
  auto below = [&](std::size_t limit) { return random() % limit; };
  std::vector<std::string> entries;
  data_bytes = 0;
  for (std::size_t i = 0; i < below(6); ++i) {
    auto [dtype, bytes] = dtypes[below(std::size(dtypes))];
    std::uint64_t size = bytes;
    json shape = json::array();
    bool empty = below(4) == 0;
    for (std::size_t rank = below(6); rank > 0; --rank) {
      std::uint64_t extent = empty ? 2147483647 * below(2) : 1 + below(4);
      shape.push_back(extent);
      size *= extent;
    }
    if (empty) {
      shape.insert(shape.begin(), 0);
      size = 0;
    }
    std::string entry = "\"" + std::string(names[below(std::size(names))]) +
                        std::to_string(i) + "\": {\"x\": [[{}], null], ";
    entry += "\"shape\":" + shape.dump() + ",\"dtype\":\"" + dtype + "\"," +
             "\"data_offsets\":[" + std::to_string(data_bytes) + "," +
             std::to_string(data_bytes + size) + "]}";
    data_bytes += size;
    entries.insert(entries.begin() + below(entries.size() + 1), entry);
  }
  if (below(2) == 0) {
    entries.push_back(R"("__metadata__":{"a":"b","c":""})");
  }
  std::string header = "{";
  for (const std::string& entry : entries) {
    header += (header.size() > 1 ? ",\n" : "") + entry;
  }
  return header + "}" + std::string(below(3), ' ');
}

TEST(SafetensorsFile, MlxReadsWhateverPasses) {
  TemporaryFolder folder;
  std::mt19937 random(11);
  for (int round = 0; round < 300; ++round) {
    std::uint64_t data_bytes = 0;
    std::string header = unusual_header(random, data_bytes);
    write_text(folder / "m.safetensors", file_of(header, data_bytes));
    SafetensorsHeader read;
    try {
      read = read_safetensors_header(folder / "m.safetensors");
    } catch (const Error& error) {
      // A product of empty dimensions may still be too large.
      EXPECT_THAT(error.what(), HasSubstr("overflows")) << header;
      continue;
    }
    Weights weights = load_safetensors(folder / "m.safetensors", read);
    ASSERT_EQ(weights.size(), read.tensors.size()) << header;
    for (auto& [name, value] : weights) {
      value.eval();
    }
  }
}

// Whatever happens to the bytes of a header, the answer is a header or an
// Error{format}.
TEST(SafetensorsHeader, SurvivesRandomMutations) {
  std::string valid =
      R"({"__metadata__":{"format":"pt"},)"
      R"("b":{"dtype":"F16","shape":[2,3],"data_offsets":[4,16]},)"
      R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
      R"("c":{"dtype":"U8","shape":[0],"data_offsets":[16,16]}})";
  const std::string pieces[] = {"{",
                                "}",
                                "[",
                                "]",
                                "\"",
                                ",",
                                ":",
                                "-",
                                "1e9",
                                "18446744073709551615",
                                "null",
                                "\\",
                                "\\u0000",
                                "\xff",
                                "\"a\":",
                                "\"shape\":[1]",
                                "99999999999"};
  std::mt19937 random(7);
  auto below = [&](std::size_t limit) { return random() % limit; };
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string header = valid;
    for (std::size_t edits = 1 + below(3); edits > 0; --edits) {
      std::size_t at = below(header.size());
      switch (below(4)) {
        case 0:
          header[at] = static_cast<char>(below(256));
          break;
        case 1:
          header.erase(at, 1 + below(8));
          break;
        case 2:
          header.insert(at, pieces[below(std::size(pieces))]);
          break;
        default:
          header.insert(at, header.substr(below(header.size()), below(40)));
      }
      header += header.empty() ? "{" : "";
    }
    try {
      parse_safetensors_header(header, 16, "m");
      ++accepted;
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), ErrorKind::format) << error.what();
    }
  }
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, 10000);
}

}  // namespace
}  // namespace mlxlm
